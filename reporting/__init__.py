"""From the records of finished runs to tables, figures and a page."""
