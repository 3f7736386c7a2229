"""What is stored and how it is read: shards, manifest, catalog, reader, proof."""
