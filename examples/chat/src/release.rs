//! The files of the page's script, which `build.rs` makes: they are parts of the program.

/// The name of the script: another one in each release whose script is another.
pub const SCRIPT_NAME: &str = env!("CHAT_SCRIPT");

/// The script.
pub const SCRIPT: &str = include_str!(concat!(env!("OUT_DIR"), "/app.js"));

/// The source map that leads from it back to what people wrote. It isn't served: who may read traces asks the chat.
pub const SCRIPT_MAP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/app.js.map"));
