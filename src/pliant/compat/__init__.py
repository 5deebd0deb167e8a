"""The operators under the names, arguments and state dicts of other libraries."""
