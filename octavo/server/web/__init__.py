"""The page at `/`: chat and the engine seen live, as plain files that the browser runs as they are."""
