"""All claims of a host: admitted, acquired, given back."""
