"""RallyChat: a chatbot service for open language models."""
