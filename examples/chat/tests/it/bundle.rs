//! What `build.rs` makes of scripts.

#[path = "../../build/minify.rs"]
mod minify;

use minify::bundle;

#[track_caller]
fn check(script: &str, expected: &str) {
    assert_eq!(bundle([("a.js", script)]).code, expected);
}

#[test]
fn blanks_and_comments_go_where_nothing_depends_on_them() {
    check(
        "const sum = 1 + 2; // three\n/* and */ let x",
        "const sum=1+2;let x",
    );
    check("a + +b - -c + ++d", "a+ +b- -c+ ++d");
    check("return\nvalue\n  .shown()\n", "return\nvalue.shown()");
    check("call()\nawait next\n}\nlast", "call()\nawait next}\nlast");
    check("a = b\n[c] = d\n(e)", "a=b\n[c]=d\n(e)");
    check("x = {\n  one: 1,\n  two,\n}\ny", "x={one:1,two,}\ny");
}

#[test]
fn texts_templates_and_expressions_stay_as_they_are() {
    check(r#"f( 'a // b' , "c \" d" )"#, r#"f('a // b',"c \" d")"#);
    check(r"f( /a \/ [/] b/g , c / d / e )", r"f(/a \/ [/] b/g,c/d/e)");
    check(
        "f( `a  ${ b + `c  ${ {d: 1} }` }  e\n f` )\ng",
        "f(`a  ${b+`c  ${{d:1}}`}  e\n f`)\ng",
    );
}

#[test]
fn functions_get_short_names_and_properties_keep_theirs() {
    check(
        "function show(a) { return show(b).show + { show: show } + `${show}` }",
        "function c(a){return c(b).show+{show:c}+`${c}`}",
    );
    // Here it may be the property's name as well.
    check(
        "function show() {} x = { show, y }",
        "function show(){}x={show,y}",
    );
    check(
        "function d() {} function o() {} do {} while (x)",
        "function a(){}function b(){}do{}while(x)",
    );
}

#[test]
fn each_word_leads_back_to_its_source() {
    let bundle = bundle([
        ("one.js", "// first\nconst µ = 'ü𐍈', one = 1;\n"),
        ("two.js", "\n\nfunction two() {\n  return one;\n}\n"),
    ]);
    assert_eq!(
        bundle.code,
        "const µ='ü𐍈',one=1;\nfunction a(){return one;}"
    );
    let origin = |line, column| {
        let token = bundle.map.lookup_token(line, column).unwrap();
        let (source, line, column, name) = token.to_tuple();
        (source.to_owned(), line, column, name.map(str::to_owned))
    };
    // Columns count UTF-16 units, on both sides.
    assert_eq!(origin(0, 14), ("one.js".into(), 1, 17, None));
    assert_eq!(origin(1, 9), ("two.js".into(), 2, 9, Some("two".into())));
    assert_eq!(origin(1, 20), ("two.js".into(), 3, 9, None));
    assert_eq!(
        bundle.map.get_source_contents(1),
        Some("\n\nfunction two() {\n  return one;\n}\n")
    );
}
