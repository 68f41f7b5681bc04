"""What a server wrote down of its traffic (`llumnix serve --record`): written, read, handed on."""
