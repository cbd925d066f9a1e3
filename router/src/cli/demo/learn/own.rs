//! Gold-graded requests of the demo's own, so that it needs no file: what a service might ask, in the forms that the bundled
//! model knows, and work with exact answers that is beyond it. All texts were written for the demo.

use local_worker::evaluate::Record;

/// What a user says and the intent it has, by label set.
const INTENTS: [(&str, &[(&str, &str)]); 3] = [
    (
        "banking77",
        &[
            ("I was charged twice for my lunch yesterday", "transaction_charged_twice"),
            ("my new card still has not come in the post", "card_arrival"),
            ("how do I activate the card I just received?", "activate_my_card"),
            ("I forgot my passcode, what now?", "passcode_forgotten"),
            ("why was my card payment declined in the shop", "declined_card_payment"),
            ("the machine would not give me any cash, it was declined", "declined_cash_withdrawal"),
            ("what is the exchange rate for dollars today", "exchange_rate"),
            ("my top up failed, why?", "top_up_failed"),
            ("how can I change my PIN?", "change_pin"),
            ("please cancel the transfer I made this morning", "cancel_transfer"),
            ("my transfer is still pending after two days", "pending_transfer"),
            ("I would like a refund for something I bought", "request_refund"),
            ("the ATM swallowed my card", "card_swallowed"),
            ("my phone was stolen, what should I do", "lost_or_stolen_phone"),
            ("I lost my card on the train", "lost_or_stolen_card"),
            ("can I use Apple Pay with this account", "apple_pay_or_google_pay"),
            ("there is a fee for my cash withdrawal, why?", "cash_withdrawal_charge"),
            ("I want to close my account", "terminate_account"),
            ("how old do I have to be to open an account", "age_limit"),
            ("where can I see the virtual card I ordered", "getting_virtual_card"),
            ("contactless does not work on my card", "contactless_not_working"),
            ("how long until my transfer arrives?", "transfer_timing"),
            ("can I top up automatically?", "automatic_top_up"),
            ("which countries do you support?", "country_support"),
            ("there is a direct debit that I do not recognise", "direct_debit_payment_not_recognised"),
            ("I got the wrong amount of cash out of the machine", "wrong_amount_of_cash_received"),
            ("my refund is not showing up on the statement", "refund_not_showing_up"),
            ("how do I link my card to the app again", "card_linking"),
            ("my card is about to expire, will I get a new one", "card_about_to_expire"),
            ("why do you need to verify my identity?", "why_verify_identity"),
        ],
    ),
    (
        "clinc150",
        &[
            ("what is the weather like in oslo tomorrow", "weather"),
            ("set an alarm for seven in the morning", "alarm"),
            ("how many calories are in a banana", "calories"),
            ("tell me a joke about computers", "tell_joke"),
            ("flip a coin for me please", "flip_coin"),
            ("roll a six sided dice", "roll_dice"),
            ("what is my account balance", "balance"),
            ("how do you say thank you in french", "translate"),
            ("what time is it in tokyo right now", "time"),
            ("set a timer for ten minutes", "timer"),
            ("find my phone please", "find_phone"),
            ("how do you spell necessary", "spelling"),
            ("add milk to my shopping list", "shopping_list_update"),
            ("what is on my shopping list", "shopping_list"),
            ("book me a flight from berlin to rome", "book_flight"),
            ("i need a hotel in lisbon for two nights", "book_hotel"),
            ("how is the traffic on my way to work", "traffic"),
            ("what is the date today", "date"),
            ("what is the name of this song", "what_song"),
            ("play the next song", "next_song"),
            ("what are your hobbies", "what_are_your_hobbies"),
            ("where are you from", "where_are_you_from"),
            ("how old are you", "how_old_are_you"),
            ("what is the meaning of life", "meaning_of_life"),
            ("tell me a fun fact about whales", "fun_fact"),
            ("how do i jump start a car", "jump_start"),
            ("when should i change my oil", "oil_change_when"),
            ("how many vacation days do i have left", "pto_balance"),
            ("i lost my luggage at the airport", "lost_luggage"),
            ("what is the exchange rate of euros to dollars", "exchange_rate"),
            ("please freeze my account", "freeze_account"),
            ("what is my credit score", "credit_score"),
            ("i need to report a fraudulent charge", "report_fraud"),
            ("when is my electricity bill due", "bill_due"),
            ("pay my phone bill", "pay_bill"),
            ("what kind of plug do they use in england", "plug_type"),
            ("what vaccines do i need for kenya", "vaccines"),
            ("what can i use instead of butter", "ingredient_substitution"),
            ("how long should i cook rice", "cook_time"),
            ("find me a recipe for pancakes", "recipe"),
        ],
    ),
    (
        "hwu64",
        &[
            ("play some jazz for me", "play_music"),
            ("remove the alarm i set for tomorrow", "alarm_remove"),
            ("wake me up at six", "alarm_set"),
            ("which alarms are set", "alarm_query"),
            ("turn the lights off in the kitchen", "iot_hue_lightoff"),
            ("make the lights blue", "iot_hue_lightchange"),
            ("dim the lights please", "iot_hue_lightdim"),
            ("make me a coffee", "iot_coffee"),
            ("start the vacuum cleaner", "iot_cleaning"),
            ("order a pizza for tonight", "takeaway_order"),
            ("book a taxi to the station", "transport_taxi"),
            ("buy a train ticket to london", "transport_ticket"),
            ("when does the next bus leave", "transport_query"),
            ("how is the traffic downtown", "transport_traffic"),
            ("will it rain tomorrow", "weather_query"),
            ("what is in the news today", "news_query"),
            ("send an email to my sister", "email_sendemail"),
            ("do i have new emails", "email_query"),
            ("add eggs to the shopping list", "lists_createoradd"),
            ("delete milk from my list", "lists_remove"),
            ("read me my list of tasks", "lists_query"),
            ("put a meeting in my calendar for friday at three", "calendar_set"),
            ("cancel my appointment on monday", "calendar_remove"),
            ("what is on my calendar today", "calendar_query"),
            ("tell me a joke", "general_joke"),
            ("turn the volume up", "audio_volume_up"),
            ("mute the speakers", "audio_volume_mute"),
            ("play my audiobook", "play_audiobook"),
            ("play the radio", "play_radio"),
            ("what is the stock price of apple", "qa_stock"),
            ("what does ambiguous mean", "qa_definition"),
            ("how do i cook lentils", "cooking_recipe"),
            ("post on twitter that i am happy", "social_post"),
            ("what time is it in sydney", "datetime_query"),
        ],
    ),
];

const TEXTS: [(&str, &str); 34] = [
    ("WINNER!! Claim your free prize now, call 09061701461. Cost 150p per min", "spam"),
    ("URGENT! Your mobile number has won 2000 pounds, call 09058094455 now", "spam"),
    ("Free entry in a weekly draw to win tickets, text WIN to 80086", "spam"),
    ("You have been selected for a cash award. To claim call 08712300220", "spam"),
    ("Congratulations! You won a new camera phone. Reply YES to claim it", "spam"),
    ("Get the latest ringtones free, text TONE to 85069. 3 pounds a week", "spam"),
    ("Private! Your account statement shows 800 unredeemed points, call 08719899230", "spam"),
    ("Hot singles in your area, text CHAT to 86688 now. 18+ only", "spam"),
    ("Your free holiday voucher is waiting, call 09050090044 to collect", "spam"),
    ("Win a 1000 pound shopping spree, txt SHOP to 83355 today", "spam"),
    ("Half price line rental and free texts, call MobilesDirect on 08000938767", "spam"),
    ("Last chance to claim your bonus! Send STOP to opt out, 150p per msg", "spam"),
    ("Running late, see you at the station at six", "not_spam"),
    ("Can you pick up some bread on your way home?", "not_spam"),
    ("ok lah see you tomorrow then", "not_spam"),
    ("I am still in the meeting, call you later", "not_spam"),
    ("Happy birthday mum! Hope you have a lovely day", "not_spam"),
    ("Did you finish the homework already?", "not_spam"),
    ("Sorry I missed your call, was driving", "not_spam"),
    ("The keys are under the mat, feed the cat please", "not_spam"),
    ("We are at the cinema, row twelve", "not_spam"),
    ("Thanks for dinner last night, it was great", "not_spam"),
    ("What time does your train get in?", "not_spam"),
    ("I think I left my umbrella at your place", "not_spam"),
    ("Good morning dear, did you sleep well?", "not_spam"),
    ("No worries, take your time", "not_spam"),
    ("Shall we have lunch on Thursday?", "not_spam"),
    ("He said he will come round after work", "not_spam"),
    ("Just got home, so tired today", "not_spam"),
    ("Let me know when you get there", "not_spam"),
    ("Haha that is so funny, tell me more tonight", "not_spam"),
    ("The doctor says it is only a cold", "not_spam"),
    ("I will bring the book on Monday", "not_spam"),
    ("Could you send me the address again", "not_spam"),
];

const LANGUAGES: [(&str, &[&str]); 6] = [
    (
        "English",
        &[
            "Where did you put the keys?",
            "I am going for a walk now",
            "Can you help me with this?",
            "You are very kind",
        ],
    ),
    (
        "German",
        &[
            "Ich habe heute keine Zeit",
            "Kannst du mir bitte helfen?",
            "Wie spät ist es jetzt?",
            "Das war ein schöner Tag",
            "Ich möchte gern mit dir reden",
            "Was machst du am Wochenende?",
        ],
    ),
    (
        "French",
        &[
            "Merci beaucoup pour votre aide",
            "Je ne comprends pas la question",
            "Quel temps fait-il aujourd'hui ?",
            "Est-ce que tu peux me parler ?",
            "Nous allons au marché demain",
            "Tu es très gentil",
        ],
    ),
    (
        "Spanish",
        &[
            "¿Dónde está la estación de tren?",
            "Me gusta mucho esta canción",
            "¿Puedes ayudarme con esto?",
            "Hoy no tengo tiempo",
            "¿Qué quieres hacer mañana?",
            "Eres muy amable",
        ],
    ),
    (
        "Italian",
        &[
            "Mi piace molto questa canzone",
            "Dove sono le chiavi della macchina?",
            "Puoi aiutarmi per favore?",
            "Oggi non ho tempo",
            "Che cosa fai questa sera?",
            "Sei molto gentile",
        ],
    ),
    (
        "Portuguese",
        &[
            "Você pode me ajudar com isso?",
            "Eu gosto muito desta música",
            "Onde fica a estação?",
            "Hoje não tenho tempo",
            "O que você quer fazer amanhã?",
            "Você é muito gentil",
        ],
    ),
];

const OPINIONS: [(&str, &str); 16] = [
    ("Great sound, quick delivery, I love it.", "positive"),
    ("The best coffee in town and friendly people.", "positive"),
    ("Works perfectly, I would buy it again.", "positive"),
    ("A wonderful film with great actors.", "positive"),
    ("The food was delicious and the service excellent.", "positive"),
    ("Very comfortable and easy to use.", "positive"),
    ("I am very happy with this phone.", "positive"),
    ("A beautiful place, we had a great time.", "positive"),
    ("The battery died after two days and support never replied.", "negative"),
    ("The worst meal I have ever had.", "negative"),
    ("It broke after a week, a waste of money.", "negative"),
    ("A boring film with a terrible ending.", "negative"),
    ("The service was slow and the food was cold.", "negative"),
    ("I am very disappointed with the quality.", "negative"),
    ("Do not buy this, it does not work.", "negative"),
    ("The room was dirty and the staff rude.", "negative"),
];

const FACTS: [(&str, &str); 12] = [
    ("Which planet is the largest of the solar system?", "Jupiter"),
    ("Who wrote the novel Moby-Dick?", "Herman Melville"),
    ("What is the capital of Mongolia?", "Ulaanbaatar"),
    ("In which year did the Berlin wall fall?", "1989"),
    ("What is the chemical symbol of tungsten?", "W"),
    ("Which river flows through Budapest?", "Danube"),
    ("Who painted the Night Watch?", "Rembrandt"),
    ("How many strings has a violin?", "4"),
    ("What is the tallest mountain of Africa?", "Kilimanjaro"),
    ("Which gas do plants take from the air?", "Carbon dioxide"),
    ("What is the currency of Japan?", "Yen"),
    ("Which ocean lies between Europe and America?", "Atlantic"),
];

/// Forms that a request for an intent takes.
fn intent_forms(set: &str, text: &str) -> [String; 5] {
    [
        format!("Classify with the {set} intents.\n{text}"),
        format!("Message: {text}\nIntent ({set}):"),
        format!("task=intent labels={set}\n{text}"),
        format!("intent({set}): {text}"),
        format!("Use the {set} label set. What does the user want?\n{text}"),
    ]
}

/// The requests of tasks that the bundled model serves.
pub fn served() -> Vec<Record> {
    let mut records = Vec::new();
    let mut add = |task: &str, prompt: String, answer: &str| records.push(record(task, prompt, answer));
    for (set, texts) in INTENTS {
        for (text, intent) in texts {
            intent_forms(set, text).into_iter().for_each(|prompt| add("intent_closed", prompt, intent));
        }
    }
    for (text, answer) in TEXTS {
        add("spam", format!("category? [spam, not_spam]\n{text}"), answer);
        add("spam", format!("{text}\n\nWhich label is this? Choose from: spam | not_spam"), answer);
        add("spam", format!("Choose exactly one class.\nnot_spam\nspam\n---\n{text}"), answer);
    }
    for (language, texts) in LANGUAGES {
        for text in texts {
            let options = "Spanish, Portuguese, French, English, Italian, German";
            add("language_id", format!("Which language is this? Options: {options}\n{text}"), language);
            add("language_id", format!("{text}\n\nLanguage? Choose from {options}."), language);
            add("language_id", format!("What language is \"{text}\" written in? ({options})"), language);
        }
    }
    for (text, answer) in OPINIONS {
        add("sentiment", format!("sentiment? [positive, negative]\n{text}"), answer);
        add("sentiment", format!("Choose exactly one sentiment.\npositive\nnegative\n---\n{text}"), answer);
    }
    records
}

/// Work that the bundled model declines, with exact answers.
pub fn hard() -> Vec<Record> {
    let mut records: Vec<Record> =
        FACTS.iter().map(|(question, answer)| record("facts", (*question).to_owned(), answer)).collect();
    let names = ["Ada", "Ben", "Chi", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "Jo"];
    for (place, name) in names.iter().cycle().take(240).enumerate() {
        let (a, b) = (place * 7 % 83 + 11, place * 13 % 59 + 5);
        let (prompt, answer) = match place % 4 {
            0 => (
                format!("{name} buys {a} boxes with {b} pencils each and gives {b} pencils away. How many are left?"),
                (a * b - b).to_string(),
            ),
            1 => (
                format!("A train drives {a} km in the first hour and {b} km in each of the next 3. How far is that?"),
                (a + 3 * b).to_string(),
            ),
            2 => (format!("{name} reads {a} pages a day. How many pages are that in {b} days?"), (a * b).to_string()),
            _ => (
                format!("{name} had {} coins and spent {b} of them, then found {a}. How many now?", a + b),
                (2 * a).to_string(),
            ),
        };
        records.push(record("word_problem", prompt, &answer));
    }
    records
}

fn record(task: &str, prompt: String, answer: &str) -> Record {
    Record {
        id: prompt.clone(),
        task: task.to_owned(),
        source: "demo".to_owned(),
        licence: "project".to_owned(),
        prompt,
        answer: answer.to_owned(),
        labels: Vec::new(),
    }
}
