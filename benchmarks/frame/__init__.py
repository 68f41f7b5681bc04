"""What benchmarks and the tests with real engines share: servers, streams, the admin API, and the verdict."""
