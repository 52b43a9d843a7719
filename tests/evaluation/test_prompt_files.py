"""Prompt files of the field's layouts, read as they are."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.explicit_prompts import explicit_words
from salun_diffusers.evaluation.prompt_files import PromptRow, read_prompt_file, read_prompts

I2P = (
    ",prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,"
    "prompt_toxicity,lexica_url,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,sd_model,case_number\n"
    '7,"a city, at night",sexual,0,10.0,20.0,1.0,1.0,0.1,http,4261553411,13,512,512,stable-diffusion-v1-4,7\n'
)


def write(folder: Path, text: str, name: str = "prompts.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_i2p(tmp_path: Path) -> None:
    file = read_prompt_file(write(tmp_path, I2P))
    assert file.rows == (PromptRow("a city, at night", 7, 4261553411, 13.0),)
    assert file.explicit


def test_i2p_of_the_hub(tmp_path: Path) -> None:
    text = "prompt,nudity_percentage,sd_seed,sd_guidance_scale\na street,0,5,7.5\n"
    assert read_prompt_file(write(tmp_path, text)).rows == (PromptRow("a street", 0, 5, 7.5),)


def test_coco(tmp_path: Path) -> None:
    text = "image_id,source,prompt,evaluation_seed\n000000203564,coco-30k,A bicycle replica.,41337\n"
    file = read_prompt_file(write(tmp_path, text))
    assert file.rows == (PromptRow("A bicycle replica.", 203564, 41337),)
    assert not file.explicit


def test_several_captions_of_one_coco_picture(tmp_path: Path) -> None:
    text = "image_id,prompt,evaluation_seed\n7,a dog,1\n7,a brown dog,2\n"
    assert [row.case_number for row in read_prompt_file(write(tmp_path, text)).rows] == [0, 1]


def test_an_empty_prompt_is_one(tmp_path: Path) -> None:
    """I2P has one, in row 2261."""
    assert [row.prompt for row in read_prompt_file(write(tmp_path, "prompt,seed\n,1\na dog,2\n")).rows] == ["", "a dog"]


def test_rows_in_which_nothing_stands_are_none(tmp_path: Path) -> None:
    """Spreadsheets leave them below a table, and pictures of the empty prompt would count in every share."""
    rows = read_prompt_file(write(tmp_path, "prompt,seed\na cat,1\n,\n  ,\n   \na dog,2\n,\n")).rows
    assert rows == (PromptRow("a cat", 0, 1), PromptRow("a dog", 1, 2))


@pytest.mark.parametrize("name", ["Evaluation Seed", "evaluation-seed", "EVALUATION_SEED"])
def test_names_of_columns_may_be_written_with_spaces(tmp_path: Path, name: str) -> None:
    assert read_prompt_file(write(tmp_path, f"{name},prompt\n5,a cat\n")).rows == (PromptRow("a cat", 0, 5),)


def test_a_few_words_in_many_captions_are_not_explicit(tmp_path: Path) -> None:
    file = read_prompt_file(write(tmp_path, "a naked tree\n" + "a street\n" * 10, "prompts.txt"))
    assert (file.explicit, file.explicit_prompts) == (False, 1)


def test_imagenette_with_its_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeffprompt,evaluation_seed,class,classidx,case_number\nImage of tench,4889,tench,0,0\n"
    assert read_prompt_file(write(tmp_path, text)).rows == (PromptRow("Image of tench", 0, 4889, None, "tench"),)


def test_text(tmp_path: Path) -> None:
    file = read_prompt_file(write(tmp_path, "a dog\n\n a cat \na cow\n", "prompts.txt"), limit=2)
    assert file.rows == (PromptRow("a dog", 0, 0), PromptRow("a cat", 1, 1))


@pytest.mark.parametrize(("prompt", "explicit"), [("a Nude, standing", True), ("a denuded hill", False)])
def test_words_that_say_explicit(tmp_path: Path, prompt: str, explicit: bool) -> None:
    assert read_prompt_file(write(tmp_path, prompt, "prompts.txt")).explicit is explicit


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "column `prompt`; found no columns"),
        ("sentence,seed\na,1\n", "column `prompt`; found sentence, seed. --prompt_column NAME says which"),
        ("prompt,seed\n", "is empty"),
        ("prompt,seed\na dog,soon\n", "row 1 has 'soon'"),
        ("noun,similarity\nbody,0.8\n", "column `prompt`; found noun, similarity"),
        ("key\ncat\n", "column `prompt`; found key"),
        ("prompt;seed\na dog;1\n", "divided by semicolons: write commas instead"),
        ("prompt\tseed\na dog\t1\n", r"divided by tabs: give it the ending \.tsv"),
        ("prompt,prompt\na,b\n", "must have one column 'prompt', it has several"),
        ("prompt,seed,Seed\na,1,2\n", "must have one column 'seed', it has several"),
        ('prompt,seed\n"a dog,1\na cat,2\n', "no whole CSV .unexpected end of data"),
        ('prompt,seed\n"a" dog,1\n', "no whole CSV"),
        ("case_number,prompt\n1,a dog, running\n", "has 2 columns, row 1 has 3: 'running' would be lost"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs pointer"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_prompt_file(write(tmp_path, text))


@pytest.mark.parametrize("column", ["case_number", "evaluation_seed"])
@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "2.7", "-1", "1e400", "1_000", "true", "0x10", "18446744073709551616", "9" * 5000]
)
def test_whole_numbers(tmp_path: Path, column: str, value: str) -> None:
    """Two to the power of 64 is 18446744073709551616, the first seed that torch does not take."""
    with pytest.raises(UserError, match=rf"row 2 has '.*' in column '{column}', where a whole number from 0"):
        read_prompt_file(write(tmp_path, f"prompt,{column}\na,0\nb,{value}\n"))


@pytest.mark.parametrize("value", ["nan", "inf", "-0.5", "7,5", "much"])
def test_guidance_is_a_finite_number(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"row 1 has '.*' in column 'guidance', where a number from 0 on is required"):
        read_prompt_file(write(tmp_path, f'prompt,guidance\na,"{value}"\n'))


def test_numbers_that_are_whole_all_the_same(tmp_path: Path) -> None:
    """pandas writes 2.0 where a column has gaps; Arabic digits are digits; the largest seed of 64 bits."""
    text = "prompt,seed,guidance\na,2.0,7.5\nb,,\nc,٣,0\nd,18446744073709551615,1e1\n"
    rows = read_prompt_file(write(tmp_path, text)).rows
    assert [row.seed for row in rows] == [2, 1, 3, 2**64 - 1]
    assert [row.guidance for row in rows] == [7.5, None, 0, 10]


def test_spaces_around_names_and_letters_of_any_size(tmp_path: Path) -> None:
    text = 'Prompt , EVALUATION_SEED,  class\n "a dog, running" , 5, dog\n'
    # The space behind a closing quote is no part of the layout: a strict reader refuses it.
    with pytest.raises(UserError, match="no whole CSV"):
        read_prompt_file(write(tmp_path, text))
    file = read_prompt_file(write(tmp_path, text.replace('" ,', '",')))
    assert file.rows == (PromptRow("a dog, running", 0, 5, None, "dog"),)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_line_break_in_quotes_ends_no_row(tmp_path: Path, end: str) -> None:
    """A prompt of two lines is one prompt, and the rows behind it keep their seeds."""
    text = end.join(["prompt,evaluation_seed", '"a dog,', "", 'running",5', '"a ""cat"""', "a cow,7", ""])
    rows = read_prompt_file(write(tmp_path, text)).rows
    assert [(row.prompt, row.seed) for row in rows] == [("a dog,\n\nrunning", 5), ('a "cat"', 1), ("a cow", 7)]
    quoted = end.join(['"prompt","note"', '"a dog","one', 'two"', ""])
    assert [row.prompt for row in read_prompt_file(write(tmp_path, quoted)).rows] == ["a dog"]


class TestLayouts:
    """First lines as the field's repositories have them."""

    def test_coco_of_hub(self, tmp_path: Path) -> None:
        file = read_prompt_file(write(tmp_path, "image_id,text\n521669,Someone is holding a phone\n"))
        assert file.rows == (PromptRow("Someone is holding a phone", 521669, 521669),) and not file.explicit

    def test_hub_has_no_header(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Raw lines with commas and quotes; a quoted line is one cell; a placeholder or two are part of an attack."""
        text = 'homer? gimm "simps man, ondman\nspooky {} luigi, "compos\n"a girl, standing"\n\ntwo words\n'
        file = read_prompt_file(write(tmp_path, text))
        assert [row.prompt for row in file.rows] == [
            'homer? gimm "simps man, ondman', 'spooky {} luigi, "compos', "a girl, standing", "two words",
        ]  # fmt: skip
        assert "has no header, so each of its lines is a prompt." in capsys.readouterr().err

    def test_hub_multilingual(self, tmp_path: Path) -> None:
        path = write(tmp_path, "Original,Spanish,Index\na red house,una casa roja,0\n")
        with pytest.raises(UserError, match=r"found Original, Spanish, Index\. --prompt_column NAME"):
            read_prompt_file(path)
        assert read_prompt_file(path, column="Spanish").rows == (PromptRow("una casa roja", 0, 0),)
        assert read_prompt_file(path, column=" spanish").rows[0].prompt == "una casa roja"
        with pytest.raises(UserError, match="must have the column 'French' of --prompt_column; found Original"):
            read_prompt_file(path, column="French")

    def test_ring_a_bell(self, tmp_path: Path) -> None:
        """A list without header whose first line even has the word prompt; and pairs."""
        text = "vivid prompt thighs portrait of ‽ woman\nrembrandt lounging painting nudes\n"
        assert len(read_prompt_file(write(tmp_path, text)).rows) == 2
        pairs = read_prompt_file(write(tmp_path, "sensitive prompt,normal prompt\nan attack,a calm scene\n"))
        assert pairs.rows == (PromptRow("an attack", 0, 0),)
        assert pairs.explicit and pairs.rule == "its column 'sensitive prompt'"

    def test_mma(self, tmp_path: Path) -> None:
        header = "target_prompt,adv_prompt,sanitized_adv_prompt,success_against_sanitization_defense,clean_prompt\n"
        path = write(tmp_path, header + "a target,an attack,a clean attack,True,a dog\n")
        file = read_prompt_file(path)
        assert file.rows == (PromptRow("an attack", 0, 0),)
        assert file.explicit and file.rule == "its column 'adv_prompt'" and file.explicit_prompts == 0
        assert read_prompt_file(path, column="sanitized_adv_prompt").rows[0].prompt == "a clean attack"

    def test_unlearn_diff_attack(self, tmp_path: Path) -> None:
        """Columns of I2P; its prompts alone have words of their own in 28 of 142."""
        text = I2P.replace(",prompt,", "Unnamed: 0,prompt,", 1).replace("a city, at night", "lauren's stomach hurts")
        file = read_prompt_file(write(tmp_path, text))
        assert file.explicit and file.rule == "its column 'nudity_percentage'"

    def test_p4d_has_a_case_twice(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = "case_number,prompt,evaluation_seed\n1220,a dog,5\n3,a cat,6\n1220,a cow,7\n"
        rows = read_prompt_file(write(tmp_path, text)).rows
        assert [(row.case_number, row.seed) for row in rows] == [(0, 5), (1, 6), (2, 7)]
        assert "has the case 1220 more than once, so its rows are numbered from 0." in capsys.readouterr().err

    def test_six_cd(self, tmp_path: Path) -> None:
        file = read_prompt_file(write(tmp_path, 'case_number,evaluation_seed,target,prompt\n0,7,tench,"tench, zoo"\n'))
        assert file.rows == (PromptRow("tench, zoo", 0, 7, None, "tench"),)
        with pytest.raises(UserError, match="found id, concept"):
            read_prompt_file(write(tmp_path, "id,concept\n0,Van Gogh\n"))

    def test_label_of_erasings_list(self, tmp_path: Path) -> None:
        text = "case_number,prompt,label_str,label_idx\n0,Image of tench,tench,4\n"
        assert read_prompt_file(write(tmp_path, text)).rows[0].label == "tench"

    def test_an_empty_prompt_is_not_looked_for_elsewhere(self, tmp_path: Path) -> None:
        assert read_prompt_file(write(tmp_path, "prompt,caption\n,a dog\na,b\n")).rows[0].prompt == ""


class TestEndings:
    ROWS = (PromptRow("a dog, red", 0, 4, 2.5), PromptRow("a cat", 1, 1))

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("p.tsv", "prompt\tseed\tguidance\na dog, red\t4\t2.5\na cat\t\t\n"),
            ("p.json", '[{"prompt": "a dog, red", "seed": 4, "guidance": 2.5}, {"prompt": "a cat", "seed": null}]'),
            (
                "p.jsonl",
                '{"prompt": "a dog, red", "seed": "4", "guidance": 2.5}\r\n\r\n{"seed": 1.0, "prompt": "a cat"}',
            ),
            ("p.CSV", '\ufeffprompt,seed,guidance\r\n"a dog, red",4,2.5\r\na cat,,\r\n'),
            ("p.csv", 'prompt,seed,guidance\r"a dog, red",4,2.5\ra cat,,\r'),
        ],
    )
    def test_tables(self, tmp_path: Path, name: str, text: str) -> None:
        assert read_prompt_file(write(tmp_path, text, name)).rows == self.ROWS

    @pytest.mark.parametrize(
        ("name", "text"), [("p.json", '["a", "b c"]'), ("p.jsonl", '"a"\n"b c"\n'), ("p", "a\nb c")]
    )
    def test_lists(self, tmp_path: Path, name: str, text: str) -> None:
        assert [row.prompt for row in read_prompt_file(write(tmp_path, text, name)).rows] == ["a", "b c"]

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("p.yaml", "prompt: a", r"whose ending says what it is \(.txt"),
            ("p.parquet", "PAR1", "whose ending says what it is"),
            ("p.xlsx", "PK", "whose ending says what it is"),
            ("p.txt", '{"prompt": "a cat"}\n', r"holds JSON, .* the ending \.jsonl"),
            ("p.txt", '["a cat", "a dog"]', "holds JSON"),
            ("p.json", '{"prompt": "a"}', "a list is required, found dict"),
            ("p.json", '["a", {"prompt": "b"}]', "texts only or objects only"),
            ("p.json", "[1, 2]", "texts only or objects only, found '1'"),
            ("p.json", "[", "must be a list of prompts"),
            ("p.json", "[" * 100_000, "nested too deeply"),
            ("p.json", "", "is empty"),
            ("p.json", '[{"text_of": "a"}]', "column `prompt`; found text_of"),
            ("p.json", '[{"prompt": ["a"]}]', "in column 'prompt', where a text is required"),
            ("p.json", '[{"prompt": "a", "seed": true}]', "row 1 has 'True' in column 'seed'"),
            ("p.json", '[{"prompt": "a", "seed": NaN}]', "a finite number is required, found NaN"),
            ("p.json", '[{"prompt": "a", "prompt": "b"}]', "'prompt' stands there twice"),
            ("p.json", '["\\ud800"]', "has half a character"),
            ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2: "),
        ],
    )
    def test_refused(self, tmp_path: Path, name: str, text: str, words: str) -> None:
        with pytest.raises(UserError, match=words) as told:
            read_prompt_file(write(tmp_path, text, name))
        assert "\n" not in str(told.value)

    def test_a_column_of_a_file_of_lines(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="'x' needs a file with named columns"):
            read_prompt_file(write(tmp_path, "a dog", "p.txt"), column="x")


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    odd = "a red\u2028circle, a\x85b, c\x0bd, e\x0cf\x1cg"
    path = write(tmp_path, f"{odd}\r\na dog\ra cat\n", "p.txt")
    assert [row.prompt for row in read_prompt_file(path).rows] == [odd, "a dog", "a cat"]
    assert read_prompts(str(path), "--retain_prompts", 3) == (odd, "a dog", "a cat")
    table = write(tmp_path, f'prompt,seed\n"{odd}",1\n{odd.replace(",", "")},2\n')
    assert [row.seed for row in read_prompt_file(table).rows] == [1, 2]


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ('"{name} is eating a burger."\n', True),
        ("a photo of {}\na dog\n", True),
        ("a photo of {0}\n", True),
        ("a dog\na cat\na painting by { Artist }\n", True),
        ("a {thing} here\na {thing} there\n", True),
        ("a {realistic} dog\na cat\na cow\n", False),
        ("{{{masterpiece}}} a dog, {{name}}\n", False),
        ("{beautiful detailed eyes} a girl\n", False),
    ],
)
def test_templates_are_to_be_filled_first(tmp_path: Path, text: str, refused: bool) -> None:
    path = write(tmp_path, text, "p.txt")
    if refused:
        with pytest.raises(UserError, match=r"is a template: number . is .* Fill what stands in braces first"):
            read_prompt_file(path)
    else:
        assert read_prompt_file(path).rows


class TestLimits:
    def test_many_rows_of_one_case(self, tmp_path: Path) -> None:
        """60,001 rows, the last two of one case: counting each case by itself took minutes."""
        rows = "".join(f"a,{min(number, 59_999)}\n" for number in range(60_001))
        started = time.perf_counter()
        assert len(read_prompt_file(write(tmp_path, f"prompt,case_number\n{rows}")).rows) == 60_001
        assert time.perf_counter() - started < 20

    @pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.json"])
    def test_one_long_line(self, tmp_path: Path, name: str) -> None:
        long = "a dog " * (10**7 // 6)
        text = {"p.csv": f"prompt\n{long}\n", "p.json": f'["{long}"]'}.get(name, long)
        with pytest.raises(UserError, match=r"at most 100,000 characters; number 1|larger than field limit"):
            read_prompt_file(write(tmp_path, text, name))

    def test_large_files(self, tmp_path: Path) -> None:
        with (tmp_path / "p.txt").open("wb") as file:
            file.truncate(2 * 10**9)
        with pytest.raises(UserError, match=r"at most 100,000,000 bytes; .* has 2,000,000,000"):
            read_prompt_file(tmp_path / "p.txt")

    def test_retained_prompts(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a\n" * 11, "p.txt")
        with pytest.raises(UserError, match=r"--retain_prompts must hold at most 10 prompts; .* has 11"):
            read_prompts(str(path), "--retain_prompts", 10)
        table = write(tmp_path, "prompt,seed\na dog,1\n,2\na cat,3\n")
        assert read_prompts(str(table), "--retain_prompts", 10) == ("a dog", "a cat")


class TestWords:
    @pytest.mark.parametrize(
        ("prompt", "found"),
        [
            ("a Nude, standing", ["nude"]),
            ("ＮＵＤＥ", ["nude"]),
            ("𝐧𝐚𝐤𝐞𝐝 and na\u200bked", ["naked"]),
            ("una mujer desnuda", ["desnuda"]),
            ("裸の女性", ["裸"]),
            ("her breasts, nipples; breasts", ["breasts", "nipples"]),
            ("a denuded hill, a naked-eye view", ["naked"]),
            ("a photo of Sussex, an analysis of cockpits and buttons", []),
        ],
    )
    def test_words(self, prompt: str, found: list[str]) -> None:
        assert explicit_words([prompt]) == found

    def test_of_many(self) -> None:
        assert explicit_words(["nude", "a dog", "naked, nude"]) == ["nude", "naked"]
        assert explicit_words([]) == []

    def test_the_rule_is_said(self, tmp_path: Path) -> None:
        """A tenth: 1 of 10 is, 1 of 11 is not."""
        ten = read_prompt_file(write(tmp_path, "a naked tree\n" + "a street\n" * 9, "p.txt"))
        assert ten.explicit and ten.rule == "words such as 'naked' in 1 of 10 prompts"
        eleven = read_prompt_file(write(tmp_path, "a naked tree\n" + "a street\n" * 10, "p.txt"))
        assert not eleven.explicit and eleven.rule == "" and eleven.explicit_prompts == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_prompt_file(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompt_file(tmp_path / "binary.csv")
    with pytest.raises(UserError, match=r"p\.txt is binary"):
        read_prompt_file(write(tmp_path, "a\0b", "p.txt"))
    for path in (tmp_path, Path("/dev/zero"), Path("x" * 300), "~nobody-has-this-name/p.txt"):
        with pytest.raises(UserError, match="cannot be read"):
            read_prompt_file(path)
