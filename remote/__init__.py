"""Reaches boxes and rents them: transports, mirrors, the provider, the journal and the deeds that cost money."""
