//! An XML document as a tree, of which elements, their text and their `id` are kept.
//!
//! Bounded in depth and number. A document type is refused: it may declare entities that grow, and nothing that we
//! read has one.

use std::borrow::Cow;

use quick_xml::{
    Reader,
    escape::resolve_predefined_entity,
    events::{BytesRef, BytesStart, Event},
};
use zeroize::Zeroizing;

use super::Line;

const MAX_DEPTH: usize = 16;
const MAX_ELEMENTS: usize = 100_000;

#[derive(Default)]
pub(super) struct Element {
    pub(super) name: String,
    /// From 1.
    pub(super) line: usize,
    pub(super) id: Option<String>,
    /// It may be a key.
    text: Zeroizing<String>,
    children: Vec<Element>,
}

impl Element {
    /// The root of a document.
    pub(super) fn parse(text: &str) -> Result<Element, Line> {
        // The reader does not count a byte order mark.
        let text = text.trim_start_matches('\u{feff}');
        let mut reader = Reader::from_str(text);
        reader.config_mut().expand_empty_elements = true;
        let mut lines = Lines { text: text.as_bytes(), at: 0, line: 1 };
        let mut tree = Tree::default();
        loop {
            let line = lines.at(reader.buffer_position());
            let wrong = |problem: String| Line { line, text: format!("no well-formed XML: {problem}") };
            match reader.read_event().map_err(|error| wrong(error.to_string()))? {
                Event::Start(start) => tree.open(&start, line).map_err(wrong)?,
                Event::End(_) => tree.close(),
                Event::Text(text) => tree.add(&text.into_inner()).map_err(wrong)?,
                Event::CData(text) => tree.add(&text.into_inner()).map_err(wrong)?,
                Event::GeneralRef(reference) => {
                    let text = resolve(&reference).ok_or_else(|| wrong("an unknown entity".to_owned()))?;
                    tree.add(&text).map_err(wrong)?;
                }
                Event::DocType(_) => {
                    return Err(wrong("a document type, which AWS's have not".to_owned()));
                }
                Event::Eof => {
                    return match (tree.open.last(), tree.root) {
                        (Some(open), _) => {
                            Err(wrong(format!("it ends within <{}>: is the file whole?", open.name)))
                        }
                        (None, None) => Err(wrong("it has no element".to_owned())),
                        (None, Some(root)) => Ok(root),
                    };
                }
                // Expanded above.
                Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            }
        }
    }

    /// Its children of this name.
    pub(super) fn children<'e>(&'e self, name: &'e str) -> impl Iterator<Item = &'e Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// Below it, by names with `/` between them.
    pub(super) fn find(&self, path: &str) -> Option<&Element> {
        path.split('/')
            .try_fold(self, |element, name| element.children.iter().find(|child| child.name == name))
    }

    pub(super) fn has_children(&self) -> bool {
        !self.children.is_empty()
    }

    /// Without white space around it.
    pub(super) fn text(&self) -> &str {
        self.text.trim()
    }
}

#[derive(Default)]
struct Tree {
    open: Vec<Element>,
    elements: usize,
    root: Option<Element>,
}

impl Tree {
    fn open(&mut self, start: &BytesStart<'_>, line: usize) -> Result<(), String> {
        self.elements += 1;
        if self.root.is_some() {
            return Err("a second element at its top".to_owned());
        }
        if self.open.len() == MAX_DEPTH || self.elements > MAX_ELEMENTS {
            return Err(format!("more than {MAX_DEPTH} levels or {MAX_ELEMENTS} elements"));
        }
        let name = start.local_name().into_inner().to_owned();
        let id = start.try_get_attribute("id").map_err(|error| error.to_string())?;
        let id = id.map(|id| id.value.into_owned());
        self.open.push(Element { name, line, id, ..Element::default() });
        Ok(())
    }

    fn close(&mut self) {
        let Some(element) = self.open.pop() else { return };
        match self.open.last_mut() {
            Some(parent) => parent.children.push(element),
            None => self.root = Some(element),
        }
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        match self.open.last_mut() {
            // Sized first: a growing string would leave copies of keys in freed memory.
            Some(element) if element.text.is_empty() => {
                element.text.reserve_exact(text.len());
                element.text.push_str(text);
            }
            Some(element) => element.text.push_str(text),
            None if text.trim().is_empty() => {}
            None => return Err("text outside of all elements".to_owned()),
        }
        Ok(())
    }
}

/// A character's number, or one of the five entities that every document has.
fn resolve(reference: &BytesRef<'_>) -> Option<Cow<'static, str>> {
    match reference.resolve_char_ref() {
        Ok(Some(character)) => Some(Cow::Owned(character.to_string())),
        Ok(None) => resolve_predefined_entity(reference).map(Cow::Borrowed),
        Err(_) => None,
    }
}

/// Counts lines as it goes.
struct Lines<'t> {
    text: &'t [u8],
    at: usize,
    line: usize,
}

impl Lines<'_> {
    /// Of a byte not before the last one that was asked for.
    fn at(&mut self, at: u64) -> usize {
        let at = usize::try_from(at).unwrap_or(usize::MAX).min(self.text.len());
        let passed = self.text.get(self.at..at).unwrap_or_default();
        self.line += passed.iter().filter(|byte| **byte == b'\n').count();
        self.at = self.at.max(at);
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_with_their_text_and_line() {
        let text = "\u{feff}<?xml version=\"1.0\"?>\n<!-- <a> -->\n<a id='7'>\n <b>\n  <c> x &amp;&#x41;<![CDATA[<y>]]> </c>\
                    </b>\n <b/></a>\n";
        let root = Element::parse(text).unwrap();
        assert_eq!((root.name.as_str(), root.id.as_deref(), root.line), ("a", Some("7"), 3));
        let found = root.find("b/c").unwrap();
        assert_eq!((found.text(), found.line), ("x &A<y>", 5));
        assert_eq!(root.children("b").map(|child| child.line).collect::<Vec<_>>(), [4, 6]);
        assert!(root.find("b/d").is_none() && root.find("").is_none());
    }

    #[test]
    fn what_is_hostile_or_broken_is_refused_with_its_line() {
        let deep = "<a>".repeat(100_000);
        let many = format!("<a>{}</a>", "<b/>".repeat(200_000));
        let laughs = "<!DOCTYPE a [<!ENTITY x \"ha\"><!ENTITY y \"&x;&x;\">]>\n<a>&y;</a>";
        for (text, line, said) in [
            ("", 1, "it has no element"),
            ("nothing", 1, "text outside"),
            ("<a>\n<b>", 2, "it ends within <b>"),
            ("<a>\n</b>", 2, ""),
            ("<a>\n<b", 2, ""),
            ("<a>\n<b id=7/></a>", 2, ""),
            ("<a>\n&lol;</a>", 2, "an unknown entity"),
            ("<a>\n&#xd800;</a>", 2, "an unknown entity"),
            ("<a/>\n<a/>", 2, "a second element"),
            ("<a/>\nx", 1, "text outside"),
            (laughs, 1, "a document type"),
            (&deep, 1, "more than 16 levels"),
            (&many, 1, "more than 16 levels"),
        ] {
            let short = &text[..text.len().min(60)];
            let Err(error) = Element::parse(text) else { panic!("{short:?} is taken") };
            assert_eq!(error.line, line, "{short:?}: {error}");
            let expected = format!("no well-formed XML: {said}");
            assert!(error.text.starts_with(&expected), "{short:?}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(</?[ab]/?>|<!\\[CDATA\\[|\\]\\]>|<!--|-->|<!DOCTYPE|&(amp|lol|#1)?;?|[ =\"'<>&a-c\n]|\\PC){0,60}") {
            let _ = Element::parse(&text);
        }
    }
}
