"""New problems from old ones: where the policy is weak, by generators (procedural.py) or a teacher model (teacher.py).

weakness.py finds and weighs the weak topics. What is proposed here is curated like every other row by the stage.
"""
