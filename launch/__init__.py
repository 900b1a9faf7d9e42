"""Several tasks at once: as processes of one machine, or as jobs of a cluster."""
