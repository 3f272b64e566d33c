"""The explorer: an atlas as pages, served on this machine or written as a static site. It shows records."""
