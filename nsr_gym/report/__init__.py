"""Reports on result tables: summary, terminal tables, figures."""
