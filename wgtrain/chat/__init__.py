"""Conversations -> text: chat templates, which are code from strangers, where they can be ended."""
