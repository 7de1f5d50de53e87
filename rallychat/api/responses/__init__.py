"""OpenAI's Responses: the stateful face. The server owns the conversation, and the answer that grows in it."""
