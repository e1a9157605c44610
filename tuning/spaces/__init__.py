"""Ready search spaces, one YAML file each."""
