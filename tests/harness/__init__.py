"""What the tests are run with: brokers, proxies, workers, waiting."""
