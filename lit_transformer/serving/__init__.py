"""A server that translates: a JSON API and a web page, for one trained model on one machine."""
