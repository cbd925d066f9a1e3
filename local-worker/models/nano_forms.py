"""Forms of questions, the corpus' and ours, and names that labels may have, for nano_records.py.

nano_unseen.py asks in forms and by names that are not here.
"""

SYSTEM = (
    "System: respond with the answer and nothing else.",
    "You are a precise text-processing service. Answer with the result only.",
    "You are a helpful assistant inside a backend service. Be brief.",
    "You are a deterministic function. Output just the result.",
    "Return only the value. No explanation.",
)
CLOSED = (
    ('intent({set}): ', ''),
    ('[{set}] intent of this message: ', ''),
    ('task=intent labels={set}\n', ''),
    ('Classify with the {set} intents.\n', ''),
    ('Label set: {set}. Give the intent of: ', ''),
    ('Which {set} intent is "', '"?'),
    ('Use the {set} label set. What does the user want?\n', ''),
    ('Predict the {set} intent. Reply with the label only.\n\n', ''),
    ('Message: ', '\nIntent ({set}):'),
    ('', '\n\n{set} intent?'),
    ('{"task":"intent","label_set":"{set}","text":', '}'),
)
OWN = (
    ('{set} label for "', '"'),
    ('Text: ', '\nAnswer with one label of {set}.'),
    ('What is wanted here, as {set} names it?\n', ''),
    ('', ' -> {set} intent'),
    ('Sort this message by the {set} labels: ', ''),
    ('{set}|', '|'),
    ('Please tell me the {set} intent for the following.\n\n', '\n\nThank you.'),
)
OWN_MORE = (
    ('{set} >> ', ''),
    ('"', '" is a message to a bot. Its {set} intent?'),
    ('intent = {set}("', '")'),
    ('Given this message, return the {set} intent only: ', ''),
    ('', ' | {set} | intent'),
    ('User: ', '\nBot ({set} intent): '),
    ('<text>', '</text><intent set="{set}">'),
    ('Tag with {set}:\n', ''),
    ('Read this and name its intent, {set} labels.\n---\n', '\n---'),
    ('msg: ', ' [{set} intent]'),
    ('Route this by {set} intent -> ', ''),
    ('The caller says "', '". {set} label?'),
    ('text: ', '\nset: {set}\nintent: '),
    ('I want to know the intent ({set}) of: ', ''),
    ('label_set={set} text=', ''),
    ('# {set}\n', '\n# intent'),
    ('In {set} terms, what is meant by: ', ''),
)
OWN_LISTS = (
    "{labels}? {text}",
    "Text: {text}\nPick from: {labels}",
    "pick one ({labels}): {text}",
    'Of {labels}, which fits "{text}"?',
    "{kind} = [{labels}]\ninput = {text}\noutput =",
    "<labels>{labels}</labels>\n<text>{text}</text>",
    "The {kind} of the text below, out of {labels}:\n{text}",
    "Decide between {labels} for this text.\n\n{text}",
    "{text}\n-> {labels}",
    "{text}\n({labels})",
    "Text: {text}\n{kind} ({labels}):",
    'Is "{text}" {labels}?',
)
NOUNS = {
    "sentiment": ("sentiment", "feeling", "opinion", "attitude"),
    "spam": ("class", "verdict", "filter"),
    "clickbait": ("class", "sort of headline", "verdict"),
    "language_id": ("language",),
    "topic": ("topic", "subject", "domain", "category"),
    "intent_candidates": ("intent", "request", "purpose"),
}
# Labels by other names: lists are to be read.
RENAMED = {
    "sentiment": [
        {"positive": one, "negative": other, "neutral": third}
        for one, other, third in (
            ("favourable", "unfavourable", "neither"), ("happy", "unhappy", "indifferent"), ("praise", "complaint", "no opinion"),
            ("thumbs up", "thumbs down", "no thumb"), ("pos", "neg", "neu"), ("satisfied", "dissatisfied", "undecided"),
            ("+", "-", "0"), ("likes it", "dislikes it", "does not say"), ("warm", "cold", "even"), ("great", "awful", "okay"),
        )
    ],
    "spam": [
        {"spam": one, "not_spam": other, "ham": other, "not spam": other}
        for one, other in (
            ("unwanted", "wanted"), ("advertising", "personal"), ("scam", "fine"), ("block", "keep"), ("bulk", "private"),
            ("rubbish", "genuine"), ("unsolicited", "ordinary"), ("trash", "real"),
        )
    ],
    "clickbait": [
        {"clickbait": one, "news": other}
        for one, other in (
            ("teaser", "serious"), ("lure", "journalism"), ("sensational", "factual"), ("fluff", "press"), ("hook", "article"),
            ("entertainment", "information"),
        )
    ],
    "language_id": [
        dict(zip(("English", "French", "German", "Italian", "Portuguese", "Spanish"), names))
        for names in (
            ("en", "fr", "de", "it", "pt", "es"), ("EN", "FR", "DE", "IT", "PT", "ES"),
            ("english", "french", "german", "italian", "portuguese", "spanish"),
            ("eng", "fra", "deu", "ita", "por", "spa"),
            ("English text", "French text", "German text", "Italian text", "Portuguese text", "Spanish text"),
            ("in English", "in French", "in German", "in Italian", "in Portuguese", "in Spanish"),
            ("English language", "French language", "German language", "Italian language", "Portuguese language", "Spanish language"),
        )
    ],
}
# From the seventh stage on each label may have any of these names, whatever the others have.
NAMES = {
    "sentiment": {
        "positive": (
            "favourable", "happy", "praise", "thumbs up", "pos", "satisfied", "likes it", "warm", "great", "glad", "pleased", "excellent",
            "approving", "upbeat", "cheerful", "delighted", "fond", "admiring", "recommends", "content", "love", "joyful", "sunny",
            "thankful", "kind", "optimistic", "nice", "enthusiastic", "5 stars", "pro", "plus", "supportive", "wonderful", "sweet",
        ),
        "negative": (
            "unfavourable", "unhappy", "complaint", "thumbs down", "neg", "dissatisfied", "dislikes it", "cold", "awful", "sad",
            "displeased", "terrible", "disapproving", "gloomy", "angry", "disappointed", "hateful", "critical", "advises against",
            "upset", "hate", "miserable", "dark", "resentful", "unkind", "pessimistic", "nasty", "annoyed", "1 star", "contra",
            "minus", "hostile", "horrible", "bitter",
        ),
        "neutral": (
            "neither", "indifferent", "no opinion", "no thumb", "neu", "undecided", "does not say", "even", "okay", "objective", "flat",
            "unclear", "no feeling", "none", "middling", "impartial", "plain", "balanced", "ambivalent", "so-so", "3 stars", "grey",
            "calm", "in between", "average", "unmoved", "other",
        ),
    },
    "spam": {
        "spam": (
            "unwanted", "advertising", "scam", "block", "bulk", "rubbish", "unsolicited", "trash", "fraud", "marketing", "promotion",
            "phishing", "ad", "delete", "reject", "bogus", "nuisance", "commercial", "sales pitch", "dodgy", "filter out", "suspicious",
            "fake", "swindle", "mass mailing", "discard", "intrusive", "deceptive", "blocked",
        ),
        "not_spam": (
            "wanted", "personal", "fine", "keep", "private", "genuine", "ordinary", "real", "honest", "chat", "normal", "trusted", "no ad",
            "deliver", "accept", "authentic", "welcome", "conversation", "from a friend", "safe", "let through", "inbox", "harmless",
            "regular", "individual", "allow", "expected", "sincere", "allowed",
        ),
    },
    "clickbait": {
        "clickbait": (
            "teaser", "lure", "sensational", "fluff", "hook", "entertainment", "tabloid", "hype", "listicle", "gossip", "attention grabber",
            "cheap", "buzz", "exaggerated", "viral", "trivial", "filler", "curiosity", "trap", "tease", "shallow", "trick", "enticing",
        ),
        "news": (
            "serious", "journalism", "factual", "press", "article", "information", "newspaper", "bulletin", "current affairs",
            "plain headline", "sober", "coverage", "measured", "dispatch", "weighty", "substance", "straight news", "event", "informative",
            "deep", "dry", "fact", "story",
        ),
    },
    "language_id": {},
}
SAME_NAMES = {"ham": "not_spam", "not spam": "not_spam"}
LANGUAGE_NAMES = (
    "{} text", "in {}", "{} language", "written in {}", "{} speaking", "{} words", "the {} one", "lang: {}", "{} (language)", "{} sentence",
)
