"""The only folder that imports Ray: adapters without mathematics."""
