"""Clusters and jobs: files that start a cluster, submission of jobs, and a doctor.

One small settings file is rendered for `ray up`, KubeRay, Slurm and Docker::

    settings = load_settings("cluster/settings/kuberay.yaml")  # cluster.config
    manifest = render(settings, "kuberay-cluster")  # cluster.render

Rendering starts no process and talks to no cluster, and no rendered file holds a secret.
"""

ANSWER = "sft-rl: "
"""What the lines of a log begin with in which a helper's job answers; see :mod:`cluster.helper`."""
