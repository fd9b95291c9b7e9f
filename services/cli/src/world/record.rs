use serde_json::{Map, Value};

use super::{
    dice::Dice,
    values::{
        Article, address, amount, capital, code, company, condition, date, description, jumble, link, person, place,
        rare_word, slug, title,
    },
    vocabulary::{CATEGORIES, LABELS, TRADES, WORDS},
};

/// What kind of value a field has; sentences are chosen by it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Shape {
    /// A name or a short noun phrase.
    Name,
    /// A company's name.
    Company,
    /// A person's name.
    Person,
    /// A place's name.
    Place,
    /// Money, a share or a count.
    Amount,
    /// A web address.
    Link,
    /// One word such as a category or status.
    Label,
    /// A sentence or a long phrase.
    Sentence,
    /// Letters and digits.
    Code,
    /// A day.
    Date,
}

/// One value under its key.
#[derive(Clone, Debug)]
pub(super) struct Field {
    /// The key in lower snake case.
    pub(super) key: String,
    /// The value as text.
    pub(super) value: String,
    /// Kind of value.
    pub(super) shape: Shape,
}

impl Field {
    /// The key as words.
    pub(super) fn words(&self) -> String {
        self.key.replace('_', " ")
    }
}

/// A record of any kind but an offer.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// What it is about, in words.
    pub(super) kind: &'static str,
    /// Fields in the order of writing; keys are distinct.
    pub(super) fields: Vec<Field>,
}

/// Keys of each kind of record with the kinds of their values.
#[rustfmt::skip]
const KINDS: &[(&str, &[(&str, Shape)])] = &[
    ("order", &[("order_id", Shape::Code), ("buyer", Shape::Person), ("item", Shape::Name), ("total", Shape::Amount), ("seller", Shape::Company), ("status", Shape::Label), ("note", Shape::Sentence), ("order_date", Shape::Date), ("tracking_link", Shape::Link), ("ship_to", Shape::Place)]),
    ("person", &[("name", Shape::Person), ("town", Shape::Place), ("trade", Shape::Label), ("employer", Shape::Company), ("born", Shape::Date), ("member_code", Shape::Code), ("motto", Shape::Sentence), ("savings", Shape::Amount), ("home_page", Shape::Link), ("favourite_thing", Shape::Name)]),
    ("place", &[("place", Shape::Place), ("mayor", Shape::Person), ("main_shop", Shape::Company), ("known_for", Shape::Name), ("postcode", Shape::Code), ("toll", Shape::Amount), ("region_type", Shape::Label), ("about", Shape::Sentence), ("site", Shape::Link), ("market_day", Shape::Date)]),
    ("shipment", &[("parcel", Shape::Code), ("carrier", Shape::Company), ("from_town", Shape::Place), ("to_town", Shape::Place), ("contents", Shape::Name), ("fee", Shape::Amount), ("speed", Shape::Label), ("instructions", Shape::Sentence), ("due", Shape::Date), ("track_at", Shape::Link)]),
    ("event", &[("event", Shape::Name), ("host", Shape::Company), ("speaker", Shape::Person), ("venue", Shape::Place), ("entry_price", Shape::Amount), ("event_date", Shape::Date), ("event_type", Shape::Label), ("programme", Shape::Sentence), ("rules", Shape::Sentence), ("tickets_at", Shape::Link)]),
    ("product page", &[("maker", Shape::Company), ("product", Shape::Name), ("section", Shape::Label), ("details", Shape::Sentence), ("price", Shape::Amount), ("stock_code", Shape::Code), ("page", Shape::Link), ("care", Shape::Sentence), ("designer", Shape::Person), ("made_in", Shape::Place)]),
    ("review", &[("reviewer", Shape::Person), ("reviewed", Shape::Name), ("shop", Shape::Company), ("verdict", Shape::Sentence), ("paid", Shape::Amount), ("mood", Shape::Label), ("written_on", Shape::Date), ("bought_in", Shape::Place), ("review_page", Shape::Link)]),
    ("company profile", &[("company", Shape::Company), ("founder", Shape::Person), ("seat", Shape::Place), ("best_seller", Shape::Name), ("line_of_business", Shape::Label), ("mission", Shape::Sentence), ("registry_number", Shape::Code), ("turnover", Shape::Amount), ("founded", Shape::Date), ("website", Shape::Link)]),
    ("job notice", &[("firm", Shape::Company), ("job_title", Shape::Label), ("workplace", Shape::Place), ("pay", Shape::Amount), ("requirement", Shape::Sentence), ("duties", Shape::Sentence), ("apply_at", Shape::Link), ("contact", Shape::Person), ("start", Shape::Date), ("notice_code", Shape::Code)]),
    ("loan", &[("library", Shape::Company), ("borrower", Shape::Person), ("title", Shape::Name), ("shelf", Shape::Code), ("late_fee", Shape::Amount), ("branch", Shape::Place), ("genre", Shape::Label), ("condition", Shape::Sentence), ("return_by", Shape::Date), ("catalogue_link", Shape::Link)]),
    ("ticket", &[("route", Shape::Name), ("operator", Shape::Company), ("passenger", Shape::Person), ("departs_from", Shape::Place), ("arrives_at", Shape::Place), ("fare", Shape::Amount), ("class", Shape::Label), ("seat_code", Shape::Code), ("travel_rule", Shape::Sentence), ("booking_link", Shape::Link)]),
    ("repair", &[("workshop", Shape::Company), ("owner", Shape::Person), ("object", Shape::Name), ("fault", Shape::Sentence), ("quote", Shape::Amount), ("job_code", Shape::Code), ("state", Shape::Label), ("ready_on", Shape::Date), ("pick_up_in", Shape::Place), ("advice", Shape::Sentence)]),
];

impl Record {
    /// A record with `low` to `high` fields in random order.
    pub(super) fn new(dice: &mut Dice, low: usize, high: usize) -> Self {
        if dice.chance(15) {
            return Self { kind: "note", fields: free_fields(dice, low, high) };
        }
        let (kind, keys) = KINDS[dice.range(0, KINDS.len() - 1)];
        let mut keys = keys.to_vec();
        dice.shuffle(&mut keys);
        keys.truncate(dice.range(low, high));
        // Some records hold strange values throughout, so that no value can be guessed from its key.
        let strange = if dice.chance(25) { 80 } else { 12 };
        let article = Article::new(dice);
        let field = |&(key, shape): &(&str, Shape)| Field {
            key: key.to_owned(),
            value: value(dice, shape, &article, strange),
            shape,
        };
        Self { kind, fields: keys.iter().map(field).collect() }
    }

    /// The record as text in one of several notations.
    pub(super) fn written(&self, dice: &mut Dice) -> String {
        let case = dice.range(0, 2);
        match dice.range(0, 9) {
            0..=3 => self.json(case, false),
            4..=5 => self.json(case, true),
            6..=8 => self.lines(dice, case),
            _ => {
                let pairs = self.fields.iter().map(|field| format!("{}={}", cased(&field.key, case), field.value));
                pairs.collect::<Vec<_>>().join(" | ")
            }
        }
    }

    /// One JSON object on one line, compact or with a space after each `,` and `:`.
    pub(super) fn json(&self, case: usize, spaced: bool) -> String {
        let pairs: Map<String, Value> =
            self.fields.iter().map(|field| (cased(&field.key, case), json_value(&field.value))).collect();
        if !spaced {
            return Value::Object(pairs).to_string();
        }
        let members = pairs.iter().map(|(key, value)| format!("\"{key}\": {value}"));
        format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
    }

    fn lines(&self, dice: &mut Dice, case: usize) -> String {
        let bullet = dice.pick(&["", "", "- ", "* "]);
        let plain = dice.chance(50);
        let line = |field: &Field| {
            let key = if plain { capital(&field.words()) } else { cased(&field.key, case) };
            format!("{bullet}{key}: {}", field.value)
        };
        self.fields.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn cased(key: &str, case: usize) -> String {
    if case == 0 { key.to_owned() } else { key.to_uppercase() }
}

/// Small whole numbers stand without quotes, as a database prints them.
fn json_value(value: &str) -> Value {
    let number = value.parse::<u32>().ok().filter(|number| number.to_string() == value);
    number.map_or_else(|| Value::from(value), Value::from)
}

/// Fields whose keys are random words.
fn free_fields(dice: &mut Dice, low: usize, high: usize) -> Vec<Field> {
    const SHAPES: &[Shape] = &[
        Shape::Name,
        Shape::Company,
        Shape::Person,
        Shape::Place,
        Shape::Amount,
        Shape::Link,
        Shape::Label,
        Shape::Sentence,
        Shape::Code,
        Shape::Date,
    ];
    let count = dice.range(low, high);
    let article = Article::new(dice);
    let mut fields: Vec<Field> = Vec::with_capacity(count);
    while fields.len() < count {
        let key = match dice.range(0, 2) {
            0 => rare_word(dice),
            1 => dice.pick(WORDS).to_owned(),
            _ => format!("{}_{}", dice.pick(WORDS), dice.pick(WORDS)),
        };
        if fields.iter().all(|field| field.key != key) {
            let shape = SHAPES[dice.range(0, SHAPES.len() - 1)];
            fields.push(Field { key, value: value(dice, shape, &article, 60), shape });
        }
    }
    fields
}

/// A value; in `strange` of 100 cases one that fits its shape but has no likely words.
fn value(dice: &mut Dice, shape: Shape, article: &Article, strange: usize) -> String {
    let strange = dice.chance(strange);
    match shape {
        Shape::Name | Shape::Company | Shape::Person | Shape::Place if strange => match dice.range(0, 3) {
            0 => capital(&rare_word(dice)),
            1 => format!("{} {}", capital(&rare_word(dice)), capital(&rare_word(dice))),
            2 => title(&jumble(dice, 1, 4)),
            _ => jumble(dice, 2, 5),
        },
        Shape::Name => article.name.clone(),
        Shape::Company => {
            if dice.chance(70) {
                article.company.clone()
            } else {
                company(dice)
            }
        }
        Shape::Person => person(dice),
        Shape::Place => {
            if dice.chance(70) {
                place(dice)
            } else {
                address(dice)
            }
        }
        Shape::Amount => {
            if strange {
                dice.range(1, 99_999).to_string()
            } else {
                amount(dice)
            }
        }
        Shape::Link if strange => format!("www.{}.example/{}", rare_word(dice), slug(&jumble(dice, 1, 3))),
        Shape::Link => {
            if dice.chance(60) {
                article.link()
            } else {
                link(dice)
            }
        }
        Shape::Label if strange => capital(&rare_word(dice)),
        Shape::Label => match dice.range(0, 2) {
            0 => dice.pick(LABELS).to_owned(),
            1 => CATEGORIES[dice.range(0, CATEGORIES.len() - 1)].name.to_owned(),
            _ => capital(dice.pick(TRADES)),
        },
        Shape::Sentence if strange => jumble(dice, 4, 14),
        Shape::Sentence => {
            let text = match dice.range(0, 4) {
                0..=1 => condition(dice),
                2 => return jumble(dice, 3, 12),
                _ => description(dice, article.category, article.noun),
            };
            if dice.chance(60) { text } else { text.trim_end_matches('.').to_owned() }
        }
        Shape::Code => code(dice),
        Shape::Date => date(dice),
    }
}
