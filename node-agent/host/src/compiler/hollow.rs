//! A component without its code and its data: what the engine makes of it is the same but for what runs, and is made in a fraction of the time.

use std::collections::{BTreeMap, BTreeSet};

use wasmparser::{
    BinaryReader, BinaryReaderError, ConstExpr, ElementItems, ElementSectionReader, ExportSectionReader, ExternalKind,
    FunctionSectionReader, GlobalSectionReader, ImportSectionReader, Operator, TableInit, TableSectionReader, TypeRef,
};

type Result<T> = std::result::Result<T, BinaryReaderError>;

/// A hollow component.
#[derive(Debug)]
pub struct Hollow {
    /// Its bytes.
    pub wasm: Vec<u8>,
    /// How many functions one module, the one of most, exports or has in its tables that are not there any more.
    pub gone: u32,
}

/// The first bytes of a module or a component: magic number, version and layer.
const HEADER: usize = 8;

/// Sections of a core module, by their number.
mod core {
    pub const IMPORT: u8 = 2;
    pub const FUNCTION: u8 = 3;
    pub const TABLE: u8 = 4;
    pub const GLOBAL: u8 = 6;
    pub const EXPORT: u8 = 7;
    pub const START: u8 = 8;
    pub const ELEMENT: u8 = 9;
    pub const CODE: u8 = 10;
    pub const DATA: u8 = 11;
    pub const DATA_COUNT: u8 = 12;
}

/// Sections that have names and notes.
const CUSTOM: u8 = 0;

/// Sections of a component that have a whole module, or component, in them.
const MODULE: u8 = 1;
const COMPONENT: u8 = 4;

/// `unreachable`: its size, no locals, the instruction, the end.
const BODY: [u8; 4] = [3, 0, 0x00, 0x0b];

/// Takes out of `wasm`, which is valid, what only runs: bodies of functions (`unreachable` takes their place), all functions but one of
/// each type that is exported, what tables and memories hold at first, custom sections.
///
/// # Errors
///
/// Bytes that are no component.
pub fn hollow(wasm: &[u8]) -> Result<Hollow> {
    let mut out = Hollow { wasm: Vec::new(), gone: 0 };
    component(wasm, 0, &mut out)?;
    Ok(out)
}

/// What is in more components than this stays as it is: each costs some stack.
const DEPTH: u32 = 100;

fn component(wasm: &[u8], depth: u32, out: &mut Hollow) -> Result<()> {
    for (id, bytes) in sections(wasm, out)? {
        match id {
            CUSTOM => {}
            MODULE => section(id, out, |out| module(bytes, out))?,
            COMPONENT if depth < DEPTH => section(id, out, |out| component(bytes, depth + 1, out))?,
            _ => copied(id, bytes, out),
        }
    }
    Ok(())
}

fn module(wasm: &[u8], out: &mut Hollow) -> Result<()> {
    let sections = sections(wasm, out)?;
    let functions = Functions::read(&sections)?;
    out.gone = out.gone.max(functions.gone);
    for (id, bytes) in sections {
        let reader = BinaryReader::new(bytes, 0);
        match id {
            CUSTOM | core::ELEMENT | core::DATA | core::DATA_COUNT => {}
            core::FUNCTION => section(id, out, |out| {
                out.number(functions.kept.len());
                let types = functions.kept.iter().filter_map(|index| functions.type_of(*index));
                types.for_each(|ty| out.wasm.extend(padded(ty)));
                Ok(())
            })?,
            core::CODE => section(id, out, |out| {
                out.number(functions.kept.len());
                functions.kept.iter().for_each(|_| out.wasm.extend(BODY));
                Ok(())
            })?,
            core::EXPORT => section(id, out, |out| {
                let exports = ExportSectionReader::new(reader)?;
                out.wasm.extend(padded(exports.count()));
                for export in exports.into_iter_with_offsets() {
                    let (at, export) = export?;
                    let mut names = BinaryReader::new(bytes.get(at..).unwrap_or_default(), 0);
                    names.read_string()?;
                    let kind = names.original_position();
                    out.wasm.extend(bytes.get(at..=at + kind).unwrap_or_default());
                    out.wasm.extend(padded(match export.kind {
                        ExternalKind::Func | ExternalKind::FuncExact => functions.now(export.index),
                        _ => export.index,
                    }));
                }
                Ok(())
            })?,
            core::START => section(id, out, |out| {
                out.wasm.extend(padded(functions.now(start(bytes)?)));
                Ok(())
            })?,
            _ => copied(id, bytes, out),
        }
    }
    Ok(())
}

/// The functions of a module.
struct Functions {
    imported: u32,
    /// The types of those with a body.
    types: Vec<u32>,
    /// Those with a body that stay, by their old indices: of each type the first that is exported or the start, in the place of all.
    kept: Vec<u32>,
    first: BTreeMap<u32, u32>,
    /// How many that do not stay are exported, or in tables.
    gone: u32,
}

impl Functions {
    fn read(sections: &[(u8, &[u8])]) -> Result<Self> {
        let (mut imported, mut types) = (0, Vec::new());
        let (mut exported, mut tabled) = (BTreeSet::new(), BTreeSet::new());
        // Constants that name functions are rare: then all of them stay where they are.
        let mut named = false;
        for (id, bytes) in sections {
            let reader = BinaryReader::new(bytes, 0);
            match *id {
                core::IMPORT => {
                    for import in ImportSectionReader::new(reader)?.into_imports() {
                        imported += u32::from(matches!(import?.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)));
                    }
                }
                core::FUNCTION => types = FunctionSectionReader::new(reader)?.into_iter().collect::<Result<_>>()?,
                core::TABLE => {
                    for table in TableSectionReader::new(reader)? {
                        if let TableInit::Expr(expression) = table?.init {
                            named |= !functions_of(&expression)?.is_empty();
                        }
                    }
                }
                core::GLOBAL => {
                    for global in GlobalSectionReader::new(reader)? {
                        named |= !functions_of(&global?.init_expr)?.is_empty();
                    }
                }
                core::EXPORT => {
                    for export in ExportSectionReader::new(reader)? {
                        let export = export?;
                        if matches!(export.kind, ExternalKind::Func | ExternalKind::FuncExact) {
                            exported.insert(export.index);
                        }
                    }
                }
                core::START => _ = exported.insert(start(bytes)?),
                core::ELEMENT => tabled.extend(elements(ElementSectionReader::new(reader)?)?),
                _ => {}
            }
        }
        let mut functions = Self { imported, types, kept: Vec::new(), first: BTreeMap::new(), gone: 0 };
        let all = imported..imported.saturating_add(u32::try_from(functions.types.len()).unwrap_or(u32::MAX));
        if named {
            functions.kept = all.collect();
        } else {
            for index in exported.range(all.clone()) {
                if let Some(ty) = functions.type_of(*index) {
                    functions.first.entry(ty).or_insert(*index);
                }
            }
            functions.kept = functions.first.values().copied().collect();
            functions.kept.sort_unstable();
            tabled.append(&mut exported);
            let gone = tabled.range(all).filter(|index| functions.kept.binary_search(index).is_err()).count();
            functions.gone = u32::try_from(gone).unwrap_or(u32::MAX);
        }
        Ok(functions)
    }

    /// The type of one with a body.
    fn type_of(&self, index: u32) -> Option<u32> {
        let index = index.checked_sub(self.imported)?;
        self.types.get(usize::try_from(index).ok()?).copied()
    }

    /// The index of what is there now in the place of a function.
    fn now(&self, index: u32) -> u32 {
        let Some(ty) = self.type_of(index) else { return index };
        let stays = self.first.get(&ty).unwrap_or(&index);
        let at = self.kept.partition_point(|kept| kept < stays);
        self.imported.saturating_add(u32::try_from(at).unwrap_or(u32::MAX))
    }
}

fn elements(section: ElementSectionReader<'_>) -> Result<BTreeSet<u32>> {
    let mut tabled = BTreeSet::new();
    for element in section {
        match element?.items {
            ElementItems::Functions(functions) => {
                for function in functions {
                    tabled.insert(function?);
                }
            }
            ElementItems::Expressions(_, expressions) => {
                for expression in expressions {
                    tabled.extend(functions_of(&expression?)?);
                }
            }
        }
    }
    Ok(tabled)
}

fn functions_of(expression: &ConstExpr<'_>) -> Result<Vec<u32>> {
    let operators = expression.get_operators_reader().into_iter();
    let function = |operator| match operator {
        Ok(Operator::RefFunc { function_index }) => Some(Ok(function_index)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    };
    operators.filter_map(function).collect()
}

fn start(bytes: &[u8]) -> Result<u32> {
    BinaryReader::new(bytes, 0).read_var_u32()
}

/// The sections of a module or a component, whose header is copied.
fn sections<'a>(wasm: &'a [u8], out: &mut Hollow) -> Result<Vec<(u8, &'a [u8])>> {
    let mut reader = BinaryReader::new(wasm, 0);
    out.wasm.extend(reader.read_bytes(HEADER)?);
    let mut sections = Vec::new();
    while !reader.eof() {
        let (id, size) = (reader.read_u8()?, reader.read_var_u32()?);
        sections.push((id, reader.read_bytes(usize::try_from(size).unwrap_or(usize::MAX))?));
    }
    Ok(sections)
}

impl Hollow {
    fn number(&mut self, number: usize) {
        self.wasm.extend(padded(u32::try_from(number).unwrap_or(u32::MAX)));
    }
}

/// A section as it is.
fn copied(id: u8, bytes: &[u8], out: &mut Hollow) {
    out.wasm.push(id);
    out.number(bytes.len());
    out.wasm.extend(bytes);
}

/// A section, whose size is known only once it is written.
fn section(id: u8, out: &mut Hollow, write: impl FnOnce(&mut Hollow) -> Result<()>) -> Result<()> {
    out.wasm.push(id);
    let at = out.wasm.len();
    out.wasm.extend(padded(0));
    let begin = out.wasm.len();
    write(out)?;
    let size = padded(u32::try_from(out.wasm.len() - begin).unwrap_or(u32::MAX));
    if let Some(place) = out.wasm.get_mut(at..begin) {
        place.copy_from_slice(&size);
    }
    Ok(())
}

/// LEB128 in all of the five bytes that a number of 32 bits may have.
fn padded(number: u32) -> [u8; 5] {
    let mut bytes = [0x80, 0x80, 0x80, 0x80, 0];
    for (byte, shift) in bytes.iter_mut().zip([0, 7, 14, 21, 28]) {
        *byte |= u8::try_from(number >> shift & 0x7f).unwrap_or(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use wasmparser::Validator;

    use super::*;

    #[test]
    fn a_hollow_component_is_valid_and_holds_no_code() {
        let text = format!(
            r#"(component
                (core module $m
                    (import "a" "i" (func)) (import "a" "g" (global i32)) (import "a" "j" (func $j))
                    (memory 1) (global i32 (i32.const 7)) (table 9 funcref) (elem (i32.const 0) $f $g $h $j $g)
                    (elem declare func $s) (data (i32.const 0) "{}")
                    (func $f (param i32) (result i32) {} local.get 0) (func $g memory.size drop data.drop 0) (func $h) (func $s) (func $k)
                    (export "j" (func $j)) (export "f" (func $f)) (export "h" (func $h)) (export "k" (func $k)) (export "m" (memory 0)) (start $s))
                (core module $n (func $f) (func) (global funcref (ref.func $f)) (export "f" (func $f)))
                (component (core module (func nop)) (component (core module (func nop nop)))))"#,
            "x".repeat(10_000),
            "nop ".repeat(10_000),
        );
        let wasm = wat::parse_str(text).unwrap();
        let Hollow { wasm: hollow, gone } = hollow(&wasm).unwrap();
        Validator::new().validate_all(&hollow).unwrap();
        assert!(hollow.len() < 500, "{} of {} bytes", hollow.len(), wasm.len());
        assert_eq!(counts(&wasm), (7, 9, 6));
        assert_eq!(counts(&hollow), (7, 2 + 2, 6), "of $m one of each type, of $n, which names one, all");
        assert_eq!(gone, 3, "$g, $k and $s; $h stands for them");
    }

    /// How many modules, functions with a body, and exports there are.
    fn counts(wasm: &[u8]) -> (usize, usize, u32) {
        use wasmparser::{Parser, Payload};
        let (mut modules, mut bodies, mut exports) = (0, 0, 0);
        for payload in Parser::new(0).parse_all(wasm) {
            match payload.unwrap() {
                Payload::Version { .. } => modules += 1,
                Payload::CodeSectionEntry(_) => bodies += 1,
                Payload::ExportSection(section) => exports += section.count(),
                _ => {}
            }
        }
        (modules, bodies, exports)
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        for wasm in
            [&b"\0asm"[..], b"\0asm\x0d\0\x01\0\x01", b"\0asm\x0d\0\x01\0\x01\x7f", b"\0asm\x0d\0\x01\0\x01\x01\0"]
        {
            assert!(hollow(wasm).is_err(), "{wasm:?}");
        }
    }
}
