-- Named rewards, as DuckDB macros over targets and measurements. All lie in [0, 1].
--
-- NULL means "not measured" and stays NULL, so that a missing measurement is never mistaken for a bad picture;
-- an evaluator that looked and saw nothing stores '' or 0, which scores 0.
-- Text is compared after folding: compatibility forms and typographic marks as a keyboard has them (below), NFC, upper
-- case, all white space removed (OCR splits and joins words freely).
-- Strict is the default. The lenient text rewards also pay for surplus and repeated text.

-- One character for one: full-width forms, half-width katakana, raised, lowered and circled digits, as NFKC has them.
-- (DuckDB has NFC alone; what NFKC changes besides, such as mathematical alphabets, is left as it is.)
CREATE OR REPLACE MACRO _text_narrow(s) AS
    translate(translate(translate(s,
        '！＂＃＄％＆＇（）＊＋，－．／０１２３４５６７８９：；＜＝＞？＠ＡＢＣＤＥＦＧＨＩＪＫＬＭＮＯＰＱＲＳＴＵＶＷＸＹＺ［＼］＾＿｀ａｂｃｄｅｆｇｈｉｊｋｌｍｎｏｐｑｒｓｔｕｖｗｘｙｚ｛｜｝～￠￡￢￤￥￦',
        '!"#$%&''()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\]^_`abcdefghijklmnopqrstuvwxyz{|}~¢£¬¦¥₩'),
        '｡｢｣､･ｦｧｨｩｪｫｬｭｮｯｰｱｲｳｴｵｶｷｸｹｺｻｼｽｾｿﾀﾁﾂﾃﾄﾅﾆﾇﾈﾉﾊﾋﾌﾍﾎﾏﾐﾑﾒﾓﾔﾕﾖﾗﾘﾙﾚﾛﾜﾝﾞﾟ',
        '。「」、・ヲァィゥェォャュョッーアイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワン' || chr(12441) || chr(12442)),
        '⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉ªº①②③④⑤⑥⑦⑧⑨',
        '01234567890123456789ao123456789');

-- Marks that a reader gives as their plain ones, whatever was drawn: apostrophes, quotes, dashes, dots, bullets, slashes.
CREATE OR REPLACE MACRO _text_marks(s) AS
    regexp_replace(regexp_replace(regexp_replace(regexp_replace(regexp_replace(regexp_replace(s,
        '[‘’‚‛′´ʹʻʼʽ‵]', '''', 'g'),
        '[“”„‟″«»〝〞〟‶]', '"', 'g'),
        '[\x{2010}-\x{2015}\x{2212}\x{2043}\x{FE58}\x{FE63}]', '-', 'g'),
        '…', '...', 'g'),
        '[•‧∙⋅・]', '·', 'g'),
        '[⁄∕]', '/', 'g');

-- Several characters for one, after upper case: ligatures, signs, fractions.
CREATE OR REPLACE MACRO _text_wide(s) AS
    list_reduce(
        [['ẞ', 'SS'], ['ß', 'SS'], ['ﬀ', 'FF'], ['ﬁ', 'FI'], ['ﬂ', 'FL'], ['ﬃ', 'FFI'], ['ﬄ', 'FFL'], ['ﬅ', 'ST'],
         ['ﬆ', 'ST'], ['Ĳ', 'IJ'], ['™', 'TM'], ['℠', 'SM'], ['№', 'NO'], ['℃', '°C'], ['℉', '°F'], ['‼', '!!'],
         ['⁇', '??'], ['⁈', '?!'], ['⁉', '!?'], ['‥', '..'], ['½', '1/2'], ['¼', '1/4'], ['¾', '3/4'], ['⅓', '1/3'],
         ['⅔', '2/3'], ['⅛', '1/8']],
        lambda fold_text, fold_pair: [replace(fold_text[1], fold_pair[1], fold_pair[2])],
        [s])[1];

-- White space of every script and what has no width (soft hyphen, joiners, byte order mark) go.
CREATE OR REPLACE MACRO _text_fold(s) AS
    CASE
        WHEN strlen(s) = length(s) THEN regexp_replace(upper(s), '\s+', '', 'g') -- ASCII
        ELSE regexp_replace(_text_wide(upper(nfc_normalize(_text_marks(_text_narrow(s))))),
            '[\s\p{Z}\p{Cf}\x{FE0E}\x{FE0F}]+', '', 'g')
    END;

-- Levenshtein distance in characters. DuckDB's own counts bytes, so characters are coded as single bytes first:
-- a character of `a` becomes its place in an alphabet of the characters of `a`, any other becomes 127, which is enough
-- because only equality with a character of `a` matters. Where 126 codes are too few the textbook's table is worked out,
-- 70 ms for a text of 200 characters. A lambda over a list of one holds what would otherwise be worked out many times.
CREATE OR REPLACE MACRO _edit_chars(s) AS regexp_extract_all(s, '(?s).');

CREATE OR REPLACE MACRO _edit_code(chars, alphabet) AS
    array_to_string(list_transform(chars,
        lambda edit_char: chr(coalesce(nullif(list_position(alphabet, edit_char), 0), 127)::INTEGER)), '');

-- edit_row.row[j + 1] is the distance of what `a` has so far to the first j characters of `b`. In structs, because DuckDB
-- 1.4 wants what it reduces and what it reduces to of one type.
CREATE OR REPLACE MACRO _edit_cells(chars) AS
    list_transform(chars, lambda edit_char: {'letter': edit_char, 'row': CAST([] AS BIGINT[])});

CREATE OR REPLACE MACRO _edit_table(a, b) AS
    list_last(list_reduce(_edit_cells(a),
        lambda edit_row, edit_a: {'letter': '', 'row': list_reduce(_edit_cells(b),
            lambda edit_next, edit_b: {'letter': '', 'row': list_append(edit_next.row, least(
                edit_next.row[-1] + 1,
                edit_row.row[len(edit_next.row) + 1] + 1,
                edit_row.row[len(edit_next.row)] + (edit_a.letter <> edit_b.letter)::BIGINT))},
            {'letter': '', 'row': [edit_row.row[1] + 1]}).row},
        {'letter': '', 'row': range(len(b) + 1)}).row);

CREATE OR REPLACE MACRO _edit_distance(a, b) AS
    CASE
        WHEN a IS NULL OR b IS NULL THEN NULL
        WHEN a = '' OR b = '' THEN length(a) + length(b)
        WHEN strlen(a) = length(a) AND strlen(b) = length(b) THEN levenshtein(a, b)
        ELSE list_transform(
            [{'a': _edit_chars(a), 'b': _edit_chars(b), 'alphabet': list_distinct(_edit_chars(a))}],
            lambda edit_of: CASE
                WHEN len(edit_of.alphabet) <= 126
                    THEN levenshtein(_edit_code(edit_of.a, edit_of.alphabet), _edit_code(edit_of.b, edit_of.alphabet))
                ELSE _edit_table(edit_of.a, edit_of.b)
            END)[1]
    END;

CREATE OR REPLACE MACRO _edit_share(a, b) AS
    CASE
        WHEN a IS NULL OR b IS NULL THEN NULL
        WHEN a = '' THEN CAST(b = '' AS DOUBLE)
        ELSE greatest(0.0::DOUBLE, 1.0::DOUBLE - _edit_distance(a, b)::DOUBLE / length(a))
    END;

-- A target of several texts has a line for each. They are looked for in any order, the longest first, and what is left
-- of the text when each was taken out once is '' where nothing else was read; a text that is not there leaves a mark.
-- In the place of what was taken out stands another mark until the end, so that what stood around it is not read as one.
CREATE OR REPLACE MACRO _text_lines(target) AS
    list_transform(list_reverse_sort(list_transform(string_split(target, chr(10)),
        lambda text_line: {'length': length(_text_fold(text_line)), 'text': _text_fold(text_line)})),
        lambda text_line: text_line.text);

CREATE OR REPLACE MACRO _text_left(lines, folded) AS
    replace(list_reduce(list_prepend(folded, lines), lambda text_left, text_line:
        CASE WHEN position(text_line IN text_left) = 0 THEN text_left || chr(1)
             ELSE substr(text_left, 1, position(text_line IN text_left) - 1) || chr(2)
                || substr(text_left, position(text_line IN text_left) + length(text_line)) END), chr(2), '');

-- 1 if exactly the target was read: of several texts all, in any order, and nothing else. Texts in the target's own order
-- are not looked for one by one: the first `OOO` of GOOOO leaves no GO.
CREATE OR REPLACE MACRO text_exact(target, ocr_text) AS
    CASE WHEN contains(target, chr(10)) AND _text_fold(target) <> _text_fold(ocr_text)
        THEN CAST(_text_left(_text_lines(target), _text_fold(ocr_text)) = '' AS DOUBLE)
        ELSE CAST(_text_fold(target) = _text_fold(ocr_text) AS DOUBLE) END;

-- max(0, 1 - distance / characters of the target).
CREATE OR REPLACE MACRO text_edit(target, ocr_text) AS
    list_transform([{'a': _text_fold(target), 'b': _text_fold(ocr_text)}],
        lambda edit_pair: _edit_share(edit_pair.a, edit_pair.b))[1];

-- Lenient: 1 if the target, or every one of several texts, is somewhere in what was read.
CREATE OR REPLACE MACRO text_contains(target, ocr_text) AS
    CASE WHEN contains(target, chr(10)) AND NOT contains(_text_fold(ocr_text), _text_fold(target))
        THEN CAST(NOT contains(_text_left(_text_lines(target), _text_fold(ocr_text)), chr(1)) AS DOUBLE)
        ELSE CAST(contains(_text_fold(ocr_text), _text_fold(target)) AS DOUBLE) END;

-- Lenient: 1 if the target is somewhere in what was read, else text_edit.
CREATE OR REPLACE MACRO text_edit_lenient(target, ocr_text) AS
    CASE WHEN text_contains(target, ocr_text) = 1 THEN 1.0::DOUBLE ELSE text_edit(target, ocr_text) END;

-- 1 - distance / the longer of both: normalised edit distance, as AnyText and CVTG-2K report it.
CREATE OR REPLACE MACRO text_ned(target, ocr_text) AS
    list_transform([{'a': _text_fold(target), 'b': _text_fold(ocr_text)}], lambda edit_pair:
        CASE WHEN edit_pair.a IS NULL OR edit_pair.b IS NULL THEN NULL
             ELSE 1.0::DOUBLE - _edit_distance(edit_pair.a, edit_pair.b)::DOUBLE
                / greatest(1, length(edit_pair.a), length(edit_pair.b)) END)[1];

-- Words: between white space, lower case, of letters and digits alone; of Chinese and Japanese every character is one.
-- A word counts as often as it is there. So LongText-Bench counts the words of its `text` that were read ("text accuracy").
CREATE OR REPLACE MACRO _words(s) AS
    list_filter(string_split_regex(regexp_replace(regexp_replace(
        lower(nfc_normalize(_text_marks(_text_narrow(s)))),
        '[^\p{L}\p{M}\p{N}\s]', '', 'g'), '([\p{Han}\p{Hiragana}\p{Katakana}])', ' \1 ', 'g'), '\s+'),
        lambda one_word: one_word <> '');

CREATE OR REPLACE MACRO _words_shared(a, b) AS
    coalesce(list_sum(list_transform(list_distinct(a), lambda one_word: least(
        len(list_filter(a, lambda other_word: other_word = one_word)),
        len(list_filter(b, lambda other_word: other_word = one_word))))), 0);

-- The share of the target's words that were read, in any order.
CREATE OR REPLACE MACRO word_recall(target, ocr_text) AS
    list_transform([{'a': _words(target), 'b': _words(ocr_text)}], lambda word_pair:
        CASE WHEN target IS NULL OR ocr_text IS NULL THEN NULL
             WHEN len(word_pair.a) = 0 THEN text_contains(target, ocr_text)
             ELSE _words_shared(word_pair.a, word_pair.b)::DOUBLE / len(word_pair.a) END)[1];

-- The share of the words that were read that are the target's; 0 where none was read.
CREATE OR REPLACE MACRO word_precision(target, ocr_text) AS
    list_transform([{'a': _words(target), 'b': _words(ocr_text)}], lambda word_pair:
        CASE WHEN target IS NULL OR ocr_text IS NULL THEN NULL
             WHEN len(word_pair.b) = 0 THEN 0.0::DOUBLE
             ELSE _words_shared(word_pair.a, word_pair.b)::DOUBLE / len(word_pair.b) END)[1];

-- 1 if exactly so many were detected.
CREATE OR REPLACE MACRO count_exact(target_count, n_detected) AS
    CAST(target_count = n_detected AS DOUBLE);

-- Of evaluator `compose`: 1 if all clauses of the prompt hold; and their share. Not comparable to GenEval's own scores.
CREATE OR REPLACE MACRO geneval(clauses, clauses_right) AS
    CAST(clauses_right = clauses AS DOUBLE);

CREATE OR REPLACE MACRO clauses_held(clauses, clauses_right) AS
    CASE WHEN clauses = 0 THEN 1.0::DOUBLE ELSE clauses_right::DOUBLE / clauses END;

-- 1 if the class asked for is the one seen.
CREATE OR REPLACE MACRO class_exact(target_class, class_seen) AS
    CAST(target_class = class_seen AS DOUBLE);

-- 1 if the colour asked for is the one seen.
CREATE OR REPLACE MACRO color_exact(color, color_seen) AS
    CAST(color = color_seen AS DOUBLE);

-- The tiny world's colours, as gpo_data/tiny/words.py has them; NULL for any other name.
CREATE OR REPLACE MACRO _palette(name) AS
    MAP {'red': [205, 30, 35], 'green': [25, 135, 50], 'blue': [35, 70, 205], 'purple': [125, 40, 160],
         'orange': [225, 105, 10], 'black': [25, 25, 25], 'brown': [120, 72, 35], 'teal': [0, 128, 130]}[name];

-- max(0, 1 - distance / 100) of the colour asked for and the one seen, in RGB. Unlike color_exact it tells apart two
-- pictures that are both right or both wrong: a colour cannot drift away unseen.
CREATE OR REPLACE MACRO color_near(color, color_rgb) AS
    CASE
        WHEN _palette(color) IS NULL OR color_rgb IS NULL THEN NULL
        WHEN len(color_rgb) = 0 THEN 0.0::DOUBLE
        -- Not list_distance: DuckDB 2.0.0 reads an empty list from Parquet as one NULL below, and refuses the whole batch.
        ELSE greatest(0.0::DOUBLE, 1.0::DOUBLE - sqrt((_palette(color)[1] - color_rgb[1]) ** 2
            + (_palette(color)[2] - color_rgb[2]) ** 2 + (_palette(color)[3] - color_rgb[3]) ** 2) / 100)
    END;

-- max(0, 1 - |n - m| / m); without the max one picture with many false detections outweighs its group.
CREATE OR REPLACE MACRO count_relaxed(target_count, n_detected) AS
    CASE
        WHEN target_count IS NULL OR n_detected IS NULL THEN NULL
        WHEN target_count = 0 THEN count_exact(target_count, n_detected)
        ELSE greatest(0.0::DOUBLE, 1.0::DOUBLE - abs(n_detected - target_count)::DOUBLE / target_count)
    END;
