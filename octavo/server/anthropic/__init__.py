"""Anthropic's Messages protocol, over the same chat as OpenAI's."""
