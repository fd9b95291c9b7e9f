//! Word lists. All names are made up from parts; any likeness to a real company, person or place is chance.

/// What a shop sells in one category, and how such things are talked about.
pub(super) struct Category {
    pub(super) name: &'static str,
    pub(super) products: &'static [&'static str],
    pub(super) features: &'static [&'static str],
    pub(super) uses: &'static [&'static str],
}

#[rustfmt::skip]
pub(super) const CATEGORIES: &[Category] = &[
    Category { name: "Camping",
        products: &["head torch", "camp kettle", "sleeping mat", "rope ladder", "peg mallet", "storm lantern", "field stove", "trail hammock", "water filter", "tarp sheet", "fire striker", "bell tent", "camp stool"],
        features: &["a soft strap", "a beam that lasts all night", "a lid that locks", "seams that keep out rain", "a loop for your belt", "feet that grip wet stone", "a bag that folds flat"],
        uses: &["long nights outdoors", "walks in the hills", "wet weekends", "sleeping under trees", "slow river trips"] },
    Category { name: "Kitchen",
        products: &["bread knife", "soup ladle", "egg timer", "copper pan", "spice mill", "butter dish", "rolling pin", "salad spinner", "cake tin", "pepper grinder", "fish kettle", "dough scraper", "jam funnel"],
        features: &["a handle of pear wood", "an edge that stays sharp", "a base that heats evenly", "marks for every spoon", "a spout that never drips", "a lid with a small window"],
        uses: &["big family dinners", "early breakfasts", "small kitchens", "Sunday baking", "soups and sauces"] },
    Category { name: "Garden",
        products: &["watering can", "seed drill", "hand trowel", "plant label set", "bird bath", "compost fork", "hedge shears", "potting bench", "rain gauge", "bean frame", "leaf rake", "cold frame"],
        features: &["a rose that sprinkles gently", "steel that does not rust", "a grip for small hands", "room for forty seedlings", "blades that open by themselves", "a ten year promise"],
        uses: &["narrow balconies", "heavy clay soil", "first time growers", "spring planting", "beds full of herbs"] },
    Category { name: "Music",
        products: &["tin whistle", "reed organ", "drum stool", "music stand", "bow rosin", "thumb harp", "pitch pipe", "banjo case", "cello strap", "practice pad", "bell tree", "song book"],
        features: &["a warm low tone", "legs that never wobble", "keys that answer quickly", "a lining of green felt", "a clip for loose pages", "a tuning card in the box"],
        uses: &["quiet practice rooms", "street players", "school bands", "evening concerts", "learning by ear"] },
    Category { name: "Cycling",
        products: &["saddle cover", "bell set", "pannier bag", "chain cleaner", "frame pump", "wheel light", "rain cape", "bottle cage", "repair kit", "child seat", "cargo strap", "brake lever"],
        features: &["a mount that needs no tools", "a strip that shines at night", "a valve that fits every tyre", "buckles that open with gloves", "a sound that carries far", "a pocket for keys"],
        uses: &["dark winter mornings", "riding to work", "long flat roads", "steep cobbled lanes", "tours with luggage"] },
    Category { name: "Books",
        products: &["pocket atlas", "recipe journal", "bird guide", "star chart", "puzzle almanac", "travel diary", "knot manual", "poem reader", "tide table", "word finder", "herb lexicon", "map folder"],
        features: &["paper that takes ink well", "drawings on every page", "a ribbon in two colours", "a cover that wipes clean", "an index you can trust", "large and friendly print"],
        uses: &["long train rides", "curious children", "rainy afternoons", "reading by the fire", "planning a journey"] },
    Category { name: "Home",
        products: &["wool blanket", "door chime", "coat rack", "reading lamp", "floor cushion", "wall clock", "linen basket", "draught stopper", "shoe bench", "window box", "bath mat", "candle stand"],
        features: &["corners that are sewn twice", "a dimmer with nine steps", "hooks that hold any weight", "a cover you can wash", "colours that do not fade", "a movement without ticking"],
        uses: &["narrow hallways", "cold bedrooms", "guests who stay late", "rooms with little light", "a house by the sea"] },
    Category { name: "Office",
        products: &["desk tray", "ink bottle", "letter opener", "paper press", "foot rest", "stamp holder", "label printer", "planner pad", "cable comb", "book end", "pencil roll", "wall planner"],
        features: &["drawers that close softly", "room for a whole week", "a point that never blots", "rubber under every corner", "a cutter built into the side", "a lamp for late hours"],
        uses: &["busy front desks", "people who write by hand", "tidy minds", "shared tables", "a month of meetings"] },
    Category { name: "Toys",
        products: &["wooden train", "kite kit", "marble run", "shadow puppet", "spinning top", "block castle", "rag doll", "paper theatre", "memory game", "rocking otter", "stilts set", "whale puzzle"],
        features: &["paint that is safe to chew", "pieces that fit small hands", "a tail in five colours", "rules on a single card", "wheels that run quietly", "a sack to keep it in"],
        uses: &["windy beaches", "rainy birthdays", "children over four", "playing with grandparents", "quiet hours alone"] },
    Category { name: "Health",
        products: &["heat pillow", "foot balm", "posture belt", "tea sampler", "massage ball", "sleep mask", "bath salts", "hand cream", "pulse band", "balance board", "yoga block", "herb inhaler"],
        features: &["a scent of pine", "a filling of cherry stones", "straps that do not pinch", "no added colour", "a timer for ten minutes", "a cover of soft cotton"],
        uses: &["tired shoulders", "cold feet", "restless nights", "a short daily rest", "people who stand all day"] },
    Category { name: "Pets",
        products: &["cat hammock", "dog raincoat", "parrot swing", "hay feeder", "travel bowl", "grooming glove", "rabbit tunnel", "pond net", "leash hook", "nest box", "chew rope", "tortoise table"],
        features: &["sides that are easy to rinse", "a clasp that opens safely", "a floor that stays warm", "cord that resists teeth", "holes for fresh air", "suction feet for glass"],
        uses: &["shy animals", "muddy paths", "small flats", "long car rides", "greedy eaters"] },
    Category { name: "Tools",
        products: &["hand drill", "bench vice", "spirit level", "paint roller", "wire stripper", "nail set", "folding saw", "glue clamp", "tape measure", "wood plane", "tin snips", "chisel roll"],
        features: &["jaws lined with cork", "a bubble that glows", "teeth that cut both ways", "a lock for the tape", "a case with a map inside", "a brush for tight corners"],
        uses: &["small repairs at home", "hanging shelves straight", "old window frames", "model builders", "working on a ladder"] },
];

#[rustfmt::skip]
pub(super) const ADJECTIVES: &[&str] = &[
    "light", "sturdy", "handsome", "clever", "plain", "folding", "quiet", "bright", "simple", "solid", "slim", "generous",
    "patient", "friendly", "compact", "reliable", "soft", "warm", "cheerful", "careful", "honest", "modest", "lasting", "neat",
    "smooth", "broad", "gentle", "tough", "round", "steady", "hollow", "silver", "copper", "amber", "striped", "narrow",
];

/// Words that stand before a product's name.
#[rustfmt::skip]
pub(super) const SERIES: &[&str] = &[
    "Pocket", "Harbour", "Winter", "Meadow", "Twin", "Junior", "Grand", "Lantern", "Dune", "Tansy", "Cobalt", "Fjord",
    "Sunday", "Thistle", "Orchard", "Comet", "Pebble", "Marlin", "Juniper", "Quarry", "Velvet", "Saffron", "Tundra", "Willow",
    "Clover", "Beacon", "Foxglove", "Ember", "Puffin", "Tidal", "Nimble", "Double",
];

#[rustfmt::skip]
pub(super) const COMPANY_HEADS: &[&str] = &[
    "Alder", "Bramble", "Cob", "Dunnock", "Elder", "Fennel", "Gorse", "Hazel", "Inkle", "Jasper", "Kelp", "Larch", "Mallow",
    "Nettle", "Osier", "Plover", "Quince", "Rowan", "Sorrel", "Teasel", "Umber", "Vetch", "Whin", "Yarrow", "Zinnia", "Tallow",
    "Barley", "Cinder", "Dapple", "Flint", "Hemlock", "Madder", "Pewter", "Russet", "Sedge", "Wicker",
];

#[rustfmt::skip]
pub(super) const COMPANY_TAILS: &[&str] = &[
    "finch", "quill", "ladle", "kettle", "spindle", "bobbin", "otter", "heron", "marten", "thimble", "wren", "tack", "loom",
    "rudder", "shuttle", "pike", "gander", "trellis", "dormer", "latch", "pipit", "mote", "fathom", "skein",
];

#[rustfmt::skip]
pub(super) const COMPANY_KINDS: &[&str] = &[
    "Outfitters", "Supply", "Works", "Goods", "Traders", "Workshop", "Stores", "Makers", "Company", "Mercantile", "Brothers",
    "Sisters", "Cooperative", "Trading House", "Emporium", "Provisions", "Guild", "Depot", "& Daughters", "& Partners",
];

#[rustfmt::skip]
pub(super) const GIVEN_NAMES: &[&str] = &[
    "Maro", "Tessel", "Odwin", "Brisa", "Calder", "Ilka", "Joren", "Pell", "Sunniva", "Tobin", "Ansa", "Ferro", "Hesper",
    "Larkin", "Mireth", "Nolwen", "Osk", "Petra", "Quill", "Rosk", "Silla", "Tamsin", "Ulla", "Varo", "Wenna", "Yorick", "Zelda",
    "Bodo", "Corin", "Dessa", "Emmet", "Fenna", "Gisla", "Halvo", "Imre", "Juno", "Kasper", "Linnet", "Mosse", "Nadja",
];

#[rustfmt::skip]
pub(super) const SURNAME_HEADS: &[&str] = &["Ash", "Bar", "Cros", "Dun", "Eller", "Fair", "Gras", "Hol", "Kes", "Lam", "Mor", "Nor", "Pen", "Rad", "Sel", "Tar", "Wal", "Yar"];
#[rustfmt::skip]
pub(super) const SURNAME_TAILS: &[&str] = &["beck", "croft", "dane", "gate", "howe", "kin", "lock", "mere", "nock", "ridge", "stead", "thorpe", "vane", "wick", "worth"];

#[rustfmt::skip]
pub(super) const PLACE_HEADS: &[&str] = &[
    "Marrow", "Otter", "Tarn", "Lower Pell", "Upper Pell", "Copper", "Salt", "Heron", "Saint Ilka", "Grey", "Candle", "Bracken",
    "Wester", "Easter", "Little Osk", "Great Osk", "Amber", "Crow", "Slate", "Thimble", "Windle", "Mossy", "Barrow", "Lantern",
];
#[rustfmt::skip]
pub(super) const PLACE_TAILS: &[&str] = &["Bay", "Landing", "Hollow", "Cross", "Haven", "Quay", "Fell", "Marsh", "Point", "Ferry", "Green", "Junction", "Rise", "Strand"];
pub(super) const STREETS: &[&str] =
    &["Lane", "Street", "Row", "Walk", "Steps", "Road", "Yard", "Alley", "Wharf", "Terrace"];

#[rustfmt::skip]
pub(super) const MONTHS: &[&str] = &["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
pub(super) const WEEKDAYS: &[&str] = &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
pub(super) const SEASONS: &[&str] = &["spring", "summer", "autumn", "winter", "harvest", "holiday"];
#[rustfmt::skip]
pub(super) const NUMBER_WORDS: &[&str] = &["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];

/// Single words that a field such as status or kind holds.
#[rustfmt::skip]
pub(super) const LABELS: &[&str] = &[
    "Open", "Closed", "Paid", "Late", "Sent", "Lost", "Found", "New", "Used", "Gift", "Cash", "Card", "Code", "Ticket", "Token",
    "Coupon", "Voucher", "Refund", "Draft", "Final", "Small", "Large", "Express", "Slow", "Daily", "Weekly", "Public", "Private",
    "Red", "Blue", "Green", "Black", "Gold", "Active", "Paused", "Retail", "Online", "Standard", "Premium", "Basic",
];

pub(super) const MEMBERSHIPS: &[&str] =
    &["member", "student", "library", "ferry", "club", "loyalty", "resident", "season"];

#[rustfmt::skip]
pub(super) const TRADES: &[&str] = &["baker", "ferry pilot", "clockmaker", "teacher", "gardener", "postwoman", "carpenter", "beekeeper", "printer", "nurse", "weaver", "cook", "bookseller", "surveyor", "glazier", "fiddler"];

/// Common words for phrases that mean nothing: a model can only copy those, never guess them.
#[rustfmt::skip]
pub(super) const WORDS: &[&str] = &[
    "apple", "river", "window", "seven", "green", "walk", "under", "paper", "stone", "carry", "early", "field", "house", "light",
    "never", "open", "people", "quick", "right", "small", "table", "until", "voice", "water", "young", "about", "bring", "cloud",
    "dance", "earth", "fresh", "glass", "heart", "island", "join", "kind", "learn", "money", "night", "order", "piece", "quiet",
    "round", "sleep", "train", "uncle", "visit", "wheel", "yellow", "above", "bread", "chair", "drive", "every", "first", "great",
    "hold", "inside", "jump", "keep", "large", "mother", "north", "often", "place", "queen", "reach", "seed", "thick", "upon",
    "valley", "white", "year", "across", "bottle", "corner", "door", "enough", "forest", "garden", "happy", "iron", "juice",
    "knee", "letter", "market", "number", "ocean", "plant", "question", "ready", "silver", "thread", "useful", "village",
    "winter", "yesterday", "animal", "basket", "candle", "dinner", "engine", "finger", "goose", "hammer", "idea", "jacket",
    "kitchen", "ladder", "mirror", "needle", "orange", "pocket", "rabbit", "shadow", "ticket", "umbrella", "violin", "wagon",
    "account", "before", "confirm", "customer", "deliver", "email", "form", "gift", "holder", "invite", "limit", "minimum",
    "newest", "offered", "purchase", "receive", "sign", "spend", "terms", "valid", "within", "at", "least", "for", "the", "and",
    "with", "from", "into", "of", "a", "on", "only", "your", "their", "this", "each", "per", "more", "than", "after", "while",
    "between", "that", "makes", "stays", "holds", "works", "comes", "built", "made", "given", "kept", "sold", "found", "bought",
];

pub(super) const ONSETS: &[&str] = &[
    "b", "br", "c", "d", "dr", "f", "g", "gl", "h", "j", "k", "l", "m", "n", "p", "qu", "r", "s", "st", "t", "th", "v",
    "w", "z", "",
];
pub(super) const VOWELS: &[&str] = &["a", "e", "i", "o", "u", "ai", "ea", "oo", "y", "ei"];
pub(super) const CODAS: &[&str] = &["", "", "l", "n", "r", "s", "t", "x", "nd", "sk", "m", "ck", "rt", "ph"];
