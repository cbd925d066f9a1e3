//! The demo's requests: easy ones that a small model knows, hard ones that it doesn't, and the awkward cases.

use crate::domain::Placement;

/// What a demo request is meant to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    /// In the small model's scope; the expected answer is known.
    Easy,
    /// Beyond the small model.
    Hard,
    /// A repetition: served from the cache.
    Repeated,
    /// Must not leave the process.
    Restricted,
    /// Tried locally first, declined there, and answered by the large model.
    Escalated,
}

/// One request of the demo.
#[derive(Clone, Copy, Debug)]
pub struct DemoRequest {
    /// What it shows.
    pub shows: Shows,
    /// The prompt.
    pub prompt: &'static str,
    /// The right answer where there is one; for hard requests what the simulated large model says.
    pub answer: &'static str,
    /// A label, if any.
    pub label: Option<(&'static str, &'static str)>,
    /// Where it may be served.
    pub placement: Placement,
}

const fn easy(prompt: &'static str, answer: &'static str) -> DemoRequest {
    DemoRequest { shows: Shows::Easy, prompt, answer, label: None, placement: Placement::Auto }
}

const fn hard(prompt: &'static str, answer: &'static str) -> DemoRequest {
    DemoRequest { shows: Shows::Hard, prompt, answer, label: None, placement: Placement::Auto }
}

/// The demo's requests, in the order they are sent. All texts were written for the demo.
pub const REQUESTS: &[DemoRequest] = &[
    easy("Classify with the banking77 intents.\nI was charged twice for the same coffee.", "transaction_charged_twice"),
    easy("Message: My new card still has not arrived in the post\nIntent (banking77):", "card_arrival"),
    easy("Classify with the banking77 intents.\nI forgot my passcode", "passcode_forgotten"),
    easy("intent(banking77): how do I activate my card?", "activate_my_card"),
    easy("intent(clinc150): what is the weather like in oslo tomorrow", "weather"),
    easy("intent(clinc150): please set an alarm for seven in the morning", "alarm"),
    easy("task=intent labels=clinc150\nhow many calories are in a banana", "calories"),
    easy("Message: tell me a joke about computers\nIntent (clinc150):", "tell_joke"),
    easy("[hwu64] intent of this message: play some jazz for me", "play_music"),
    easy("Classify with the hwu64 intents.\nremove the alarm i set for tomorrow", "alarm_remove"),
    easy("Detect the language (Spanish, German, French, Italian): Ich habe heute keine Zeit", "German"),
    easy("Detect the language (English, Portuguese, French, Spanish): Merci beaucoup pour votre aide", "French"),
    easy("Language? Choose from Italian, English, Spanish.\n\nMi piace molto questa canzone", "Italian"),
    easy("category? [spam, not_spam]\nWINNER!! Claim your free prize now, call 09061701461. Cost 150p per min", "spam"),
    easy("category? [spam, not_spam]\nRunning late, see you at the station at six", "not_spam"),
    easy("sentiment? [positive, negative]\nThe battery died after two days and support never replied.", "negative"),
    easy("sentiment? [positive, negative]\nGreat sound, quick delivery, I love it.", "positive"),
    easy("Are you a robot?", "I'm a piece of software, so I am as real as software gets."),
    easy("thanks a lot bot", "You're welcome!"),
    hard(
        "Prove that there are infinitely many prime numbers.",
        "Suppose there were finitely many primes p1…pn. N = p1·…·pn + 1 leaves remainder 1 on division by each of \
         them, so its prime factors are not in the list: a contradiction.",
    ),
    hard(
        "Write a Rust function that merges two sorted slices into a new sorted vector, with tests.",
        "fn merge(a: &[i32], b: &[i32]) -> Vec<i32> { let mut out = [a, b].concat(); out.sort(); out }",
    ),
    hard(
        "A train leaves at 14:10 and travels 210 km at 84 km/h. It waits 12 minutes halfway. When does it arrive?",
        "210 km at 84 km/h take 2 h 30 min; with the wait 2 h 42 min. It arrives at 16:52.",
    ),
    hard(
        "Explain to a new colleague why we hold money before a call and settle it afterwards.",
        "Because two calls at once could each see the same free budget. Holding the worst case first makes the sum safe; \
         settling afterwards gives back what was not needed.",
    ),
    hard(
        "Summarise the causes of the French Revolution in three sentences.",
        "The crown was bankrupt and taxed those who had least. Bad harvests made bread dear. The Enlightenment had taught \
         many that privilege was not a law of nature.",
    ),
    hard(
        "Translate into Latin and explain the grammar: The farmer's daughters love the poet.",
        "Filiae agricolae poetam amant. Filiae is nominative plural, agricolae genitive singular, poetam accusative.",
    ),
    DemoRequest {
        shows: Shows::Repeated,
        prompt: "Prove that there are infinitely many prime numbers.",
        answer: "",
        label: None,
        placement: Placement::Auto,
    },
    DemoRequest {
        shows: Shows::Repeated,
        prompt: "Classify with the banking77 intents.\nI was charged twice for the same coffee.",
        answer: "",
        label: None,
        placement: Placement::Auto,
    },
    DemoRequest {
        shows: Shows::Escalated,
        prompt: "Give me a detailed plan for a weekend in Lisbon.",
        answer: "Saturday: Alfama and the castle in the morning, the tram to Belém after lunch, fado at night. Sunday: the tile \
             museum, then the train to Cascais and a walk along the coast.",
        label: None,
        placement: Placement::PreferLocal,
    },
    DemoRequest {
        shows: Shows::Restricted,
        prompt: "intent(banking77): what is the exchange rate for my salary in euros?",
        answer: "",
        label: Some(("data_class", "restricted")),
        placement: Placement::Auto,
    },
    DemoRequest {
        shows: Shows::Restricted,
        prompt: "Draft a dismissal letter for an employee, with reasons.",
        answer: "",
        label: Some(("data_class", "restricted")),
        placement: Placement::Auto,
    },
    DemoRequest {
        shows: Shows::Restricted,
        prompt: "Outline a business plan for a bakery.",
        answer: "",
        label: None,
        placement: Placement::LocalOnly,
    },
];
