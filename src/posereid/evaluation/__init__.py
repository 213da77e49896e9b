"""Search figures by the Market-1501 protocol, image quality, and a run's summary of both."""
