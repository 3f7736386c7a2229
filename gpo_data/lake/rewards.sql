-- Named rewards, as DuckDB macros over targets and measurements. All lie in [0, 1].
--
-- NULL means "not measured" and stays NULL, so that a missing measurement is never mistaken for a bad picture;
-- an evaluator that looked and saw nothing stores '' or 0, which scores 0.
-- Text is compared after folding: NFC, upper case, all white space removed (OCR splits and joins words freely).
-- Strict is the default. The lenient text rewards also pay for surplus and repeated text.

CREATE OR REPLACE MACRO _text_fold(s) AS
    regexp_replace(upper(nfc_normalize(s)), '\s+', '', 'g');

-- Levenshtein distance in characters. DuckDB's own counts bytes, so characters are coded as single bytes first:
-- a character of `a` becomes its place among the characters of `a`, any other becomes 127, which is enough because
-- only equality with a character of `a` matters. Where 126 codes are too few the answer is an error, not a guess.
CREATE OR REPLACE MACRO _edit_code(s, alphabet) AS
    array_to_string(list_transform(regexp_extract_all(s, '(?s).'),
        lambda edit_char: chr(coalesce(nullif(instr(alphabet, edit_char), 0), 127)::INTEGER)), '');

CREATE OR REPLACE MACRO _edit_alphabet(a) AS
    CASE
        WHEN length(a) <= 126 THEN a
        WHEN len(list_distinct(regexp_extract_all(a, '(?s).'))) <= 126
            THEN array_to_string(list_distinct(regexp_extract_all(a, '(?s).')), '')
        ELSE error('edit_distance: more than 126 different characters in the target')
    END;

CREATE OR REPLACE MACRO _edit_distance(a, b) AS
    CASE
        WHEN a IS NULL OR b IS NULL THEN NULL
        WHEN a = '' OR b = '' THEN length(a) + length(b)
        WHEN strlen(a) = length(a) AND strlen(b) = length(b) THEN levenshtein(a, b)
        ELSE levenshtein(_edit_code(a, _edit_alphabet(a)), _edit_code(b, _edit_alphabet(a)))
    END;

-- 1 if exactly the target was read.
CREATE OR REPLACE MACRO text_exact(target, ocr_text) AS
    CAST(_text_fold(target) = _text_fold(ocr_text) AS DOUBLE);

-- max(0, 1 - distance / characters of the target).
CREATE OR REPLACE MACRO text_edit(target, ocr_text) AS
    CASE
        WHEN target IS NULL OR ocr_text IS NULL THEN NULL
        WHEN _text_fold(target) = '' THEN text_exact(target, ocr_text)
        ELSE greatest(0.0::DOUBLE, 1.0::DOUBLE - _edit_distance(_text_fold(target), _text_fold(ocr_text))::DOUBLE
            / length(_text_fold(target)))
    END;

-- Lenient: 1 if the target is somewhere in what was read.
CREATE OR REPLACE MACRO text_contains(target, ocr_text) AS
    CAST(contains(_text_fold(ocr_text), _text_fold(target)) AS DOUBLE);

-- Lenient: 1 if the target is somewhere in what was read, else text_edit.
CREATE OR REPLACE MACRO text_edit_lenient(target, ocr_text) AS
    CASE WHEN text_contains(target, ocr_text) = 1 THEN 1.0::DOUBLE ELSE text_edit(target, ocr_text) END;

-- 1 if exactly so many were detected.
CREATE OR REPLACE MACRO count_exact(target_count, n_detected) AS
    CAST(target_count = n_detected AS DOUBLE);

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
