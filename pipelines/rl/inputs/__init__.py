"""How the tensors that methods read are had (tensors.py says which function gives which): off rollouts (facts.py), by passes of a policy
(scores.py), by probing its half-finished responses (probes.py), of a teacher (teacher.py). step.py is what such a function sees."""
