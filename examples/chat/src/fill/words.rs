//! Words, names, and how often they come up.

use std::collections::HashSet;

use fastrand::Rng;

/// Draws ranks by the law of Zipf and Mandelbrot: rank `r` comes up in proportion to `1 / (r + shift)`.
#[derive(Debug)]
pub(super) struct Zipf {
    /// The share of the ranks up to each.
    cumulative: Vec<f64>,
}

impl Zipf {
    /// Of this many ranks; the shift flattens the top.
    pub(super) fn new(ranks: usize, shift: f64) -> Self {
        let mut sum = 0.0;
        let cumulative = (0..ranks)
            .map(|rank| {
                sum += 1.0 / (rank as f64 + 1.0 + shift);
                sum
            })
            .collect();
        Self { cumulative }
    }

    /// One of the ranks, from 0.
    pub(super) fn pick(&self, rng: &mut Rng) -> usize {
        let last = self.cumulative.len() - 1;
        let at = rng.f64() * self.cumulative[last];
        self.cumulative
            .partition_point(|&share| share < at)
            .min(last)
    }
}

/// Words by rank: the most common ones are English, the tail is invented.
#[derive(Debug)]
pub(super) struct Vocabulary {
    words: Vec<String>,
    ranks: Zipf,
}

impl Vocabulary {
    const SIZE: usize = 12_000;

    pub(super) fn new() -> Self {
        // Its own seed: all histories speak the same language.
        let mut rng = Rng::with_seed(0x00BA_D5EE_D0F5_A17E);
        let mut words: Vec<String> = COMMON.split_whitespace().map(str::to_owned).collect();
        let mut known: HashSet<String> = words.iter().cloned().collect();
        while words.len() < Self::SIZE {
            let word = invent(&mut rng);
            if known.insert(word.clone()) {
                words.push(word);
            }
        }
        Self {
            ranks: Zipf::new(words.len(), 2.7),
            words,
        }
    }

    fn word(&self, rng: &mut Rng) -> &str {
        &self.words[self.ranks.pick(rng)]
    }

    /// A few words that are not the most common ones, such as a topic has.
    pub(super) fn phrase(&self, words: usize, rng: &mut Rng) -> String {
        let mut phrase = String::new();
        for position in 0..words {
            if position > 0 {
                phrase.push(' ');
            }
            let rank = 60 + self.ranks.pick(rng) % (self.words.len() - 60);
            phrase.push_str(&self.words[rank]);
        }
        phrase
    }

    /// Appends sentences of this many words together.
    pub(super) fn prose(&self, words: usize, rng: &mut Rng, text: &mut String) {
        let mut left = words;
        while left > 0 {
            let sentence = rng.usize(4..=18).min(left);
            left -= sentence;
            // In a chat, not everybody cares for capitals and full stops.
            let proper = words > 6 || rng.bool();
            for position in 0..sentence {
                let word = self.word(rng);
                match (position == 0 && proper, word.chars().next()) {
                    (true, Some(first)) => {
                        text.extend(first.to_uppercase());
                        text.push_str(&word[first.len_utf8()..]);
                    }
                    _ if rng.u32(0..70) == 0 => {
                        text.push('`');
                        text.push_str(word);
                        text.push('`');
                    }
                    _ => text.push_str(word),
                }
                if position + 1 < sentence {
                    text.push_str(if rng.u32(0..12) == 0 { ", " } else { " " });
                }
            }
            if rng.u32(0..60) == 0 {
                text.push_str(" https://docs.example.com/");
                text.push_str(self.word(rng));
                text.push('/');
                text.push_str(self.word(rng));
            } else if proper {
                text.push_str(match rng.u32(0..10) {
                    0 => "?",
                    1 => "!",
                    _ => ".",
                });
            }
            if left > 0 {
                text.push_str(if rng.u32(0..9) == 0 { "\n\n" } else { " " });
            }
        }
    }

    /// Appends a line that looks like code.
    pub(super) fn code_line(&self, rng: &mut Rng, text: &mut String) {
        let (a, b, c) = (self.word(rng), self.word(rng), self.word(rng));
        let line = match rng.u32(0..5) {
            0 => format!("let {a} = {b}.{c}()?;\n"),
            1 => format!("if {a} < {b} {{ return Err({c}); }}\n"),
            2 => format!("    {a}.push({b}(&{c}));\n"),
            3 => format!("// {a} {b} {c}\n"),
            _ => format!("fn {a}({b}: &{c}) -> Result<()> {{\n"),
        };
        text.push_str(&line);
    }
}

/// A word that could exist.
fn invent(rng: &mut Rng) -> String {
    const ONSETS: &[&str] = &[
        "b", "br", "c", "cl", "d", "dr", "f", "fl", "g", "gr", "h", "k", "l", "m", "n", "p", "pl",
        "pr", "r", "s", "sh", "st", "t", "th", "tr", "v", "w",
    ];
    const VOWELS: &[&str] = &["a", "a", "e", "e", "e", "i", "i", "o", "o", "u", "ea", "ou"];
    const INNER: &[&str] = &[
        "b", "d", "f", "g", "l", "ll", "m", "mp", "n", "nd", "nt", "p", "r", "rd", "rm", "s", "ss",
        "st", "t", "tt", "v",
    ];
    const ENDINGS: &[&str] = &[
        "n", "r", "l", "t", "m", "d", "nd", "st", "ck", "le", "ed", "en", "er", "ing", "y", "al",
        "ic", "ate", "ish", "able", "ment", "ion",
    ];
    let mut pick = |parts: &[&'static str]| parts[rng.usize(..parts.len())];
    let mut word = format!("{}{}", pick(ONSETS), pick(VOWELS));
    // Most words of a language have two syllables or three.
    for _ in 0..pick(&["", "x", "x", "xx"]).len() {
        word.push_str(pick(INNER));
        word.push_str(pick(VOWELS));
    }
    let ending = pick(ENDINGS);
    if ending.starts_with(['a', 'e', 'i', 'y']) {
        word.push_str(pick(INNER));
    }
    word.push_str(ending);
    word
}

pub(super) const EMOJI: &[(&str, &str)] = &[
    ("thumbs_up", "1f44d"),
    ("heart", "2764"),
    ("tada", "1f389"),
    ("joy", "1f602"),
    ("eyes", "1f440"),
    ("check", "2705"),
    ("plus", "2795"),
    ("rocket", "1f680"),
    ("thinking", "1f914"),
    ("wave", "1f44b"),
];

pub(super) const CLIENTS: &[&str] = &[
    "website",
    "website",
    "website",
    "desktop app",
    "mobile",
    "api",
];

pub(super) const STREAMS: &[&str] = &[
    "general",
    "engineering",
    "help",
    "design",
    "random",
    "announce",
    "releases",
    "operations",
    "frontend",
    "backend",
    "databases",
    "caching",
    "mobile",
    "security",
    "performance",
    "testing",
    "documentation",
    "research",
    "support",
    "product",
    "hiring",
    "onboarding",
    "community",
    "translation",
    "accessibility",
    "billing",
    "infrastructure",
    "incidents",
    "networking",
    "compilers",
    "games",
    "music",
    "books",
    "cooking",
    "cycling",
    "photography",
    "travel",
    "gardening",
    "science",
    "off-topic",
];

pub(super) const FIRST_NAMES: &[&str] = &[
    "Ada", "Aiko", "Alma", "Amir", "Anouk", "Ayesha", "Bela", "Bruno", "Carla", "Chen", "Dalia",
    "Daniel", "Diego", "Edith", "Elif", "Emeka", "Esther", "Farid", "Femi", "Freya", "Grace",
    "Hana", "Hugo", "Ida", "Imani", "Ines", "Ivan", "Jonas", "Julia", "Kai", "Kamala", "Katarina",
    "Keiko", "Lars", "Leila", "Lin", "Lucas", "Maeve", "Malik", "Mara", "Mateo", "Mei", "Milan",
    "Nadia", "Nils", "Noor", "Olga", "Omar", "Oscar", "Petra", "Priya", "Rafael", "Rosa", "Ruth",
    "Samir", "Selma", "Sven", "Tariq", "Tess", "Tomas", "Uma", "Vera", "Wanda", "Yusuf", "Zoe",
];

pub(super) const LAST_NAMES: &[&str] = &[
    "Abara",
    "Adeyemi",
    "Almeida",
    "Andersen",
    "Aoki",
    "Baker",
    "Barros",
    "Becker",
    "Bianchi",
    "Castillo",
    "Cohen",
    "Costa",
    "Dahl",
    "Demir",
    "Dubois",
    "Eriksen",
    "Farah",
    "Fischer",
    "Fontaine",
    "Garcia",
    "Haddad",
    "Hansen",
    "Horvat",
    "Ibrahim",
    "Ito",
    "Jansen",
    "Johansson",
    "Kaya",
    "Keller",
    "Khan",
    "Kowalski",
    "Kumar",
    "Larsen",
    "Lee",
    "Lindholm",
    "Lopez",
    "Martin",
    "Mbeki",
    "Meyer",
    "Mori",
    "Moreau",
    "Nagy",
    "Nakamura",
    "Novak",
    "Okafor",
    "Olsen",
    "Osei",
    "Park",
    "Patel",
    "Pereira",
    "Petrov",
    "Rahman",
    "Reyes",
    "Ricci",
    "Rossi",
    "Sato",
    "Schmidt",
    "Silva",
    "Singh",
    "Smit",
    "Sokolov",
    "Tanaka",
    "Torres",
    "Varga",
    "Virtanen",
    "Wagner",
    "Wang",
    "Weber",
    "Yilmaz",
    "Zhang",
];

/// About by frequency: first the words that every English text has, then those of people who build something together.
const COMMON: &str = "the to I a and it is you that of in for on this but with not be have if as so can just are was we \
my do at or what your like from would there one some about think has will an all how it's don't get know when they no \
up more out then should me which now by any also yes good need time see make work could use only other here he them \
because well ok want right thanks that's been why where than way sure too had really who very same did into I'm maybe \
still these even something much first new lot being try does were using actually look probably our back after those \
their code over before point better file again two thing problem since without case line down working does issue never \
part change different last every start sense question through seems tried own pretty few long might bit help run might \
great test idea read day write around find say made find done old let next enough while least version each error both \
sorry anyone yet server give fix already able always page user data set build call add name server guess people mean \
exactly put end hard makes keep got list might open though little kind another anything yeah without nice under link \
doesn't isn't can't won't didn't wrong real place real rather free message best hmm instead found side small far true \
simple type cache update show later table works value check key database today nothing wait nobody quite request full \
process query memory review branch release stable config library function compile number request week whole support \
order default option understand agree remember support tomorrow plan left team morning design docs window deploy module \
answer note move simple safe slow fast reason usually heard almost hour happens thread context system level lines root \
install package local remote current possible important example stuff wonder depends easier interesting several edge \
client cool metrics trace latency bench bug patch merge commit draft review index schema migration pool socket async \
task lock queue retry timeout stale fresh lease flush batch bulk prefix token batch expire log alert graph report cost";
