"""The controller of the ladder of knowledge: it reads where namespaces stand, has the policy decide, and
carries the decisions out."""
