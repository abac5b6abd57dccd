"""The load test on Locust. Nothing outside this folder imports gevent or Locust."""
