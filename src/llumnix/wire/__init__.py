"""What the processes of one server say to each other: messages, addresses, mailboxes."""
