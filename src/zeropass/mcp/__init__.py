"""The server for language models (MCP): what a model or an atlas says, as tools."""
