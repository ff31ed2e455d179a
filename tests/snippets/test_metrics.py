"""The metrics: the vectors of the task specification, their decisions, and bounds that always hold."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert4x.snippets import metrics


def approx(*values):
    return pytest.approx(values if len(values) > 1 else values[0], abs=1e-6)


def test_accuracy():
    assert metrics.accuracy([1, 0, 1, 1], (1, 1, 1, 0)) == 0.5
    assert metrics.majority_accuracy("aabbb") == 0.6
    with pytest.raises(ValueError):
        metrics.majority_accuracy([])
    for bad in (([], []), ([1], [1, 2])):
        with pytest.raises(ValueError):
            metrics.accuracy(*bad)


def test_entities():
    gold = [[(0, 2, "PER"), (5, 7, "LOC")], [], [(1, 2, "ORG")]]
    predicted = [[(0, 2, "PER"), (5, 7, "ORG"), (5, 7, "ORG")], [(0, 1, "PER")], []]
    assert metrics.entity_score(gold, predicted) == approx(1 / 3, 1 / 3, 1 / 3)
    assert metrics.entity_score(gold, gold) == (1, 1, 1)
    assert metrics.entity_score([[]], [[]]) == (0, 0, 0)
    with pytest.raises(ValueError):
        metrics.entity_score(gold, gold[:2])


def test_word_segmentation():
    gold, predicted = ["中国 科学院 计算 技术 研究所"], ["中国科学院 计算 技术 研究 所"]
    assert metrics.segmentation_score(gold, predicted) == approx(0.4, 0.4, 0.4)
    assert metrics.segmentation_score(["中国\u3000人 "], [["中国", "人"]]) == (1, 1, 1)
    recalls = metrics.vocabulary_recalls(gold, predicted, {"计算", "中国"})
    assert recalls == {"oov_rate": approx(0.6), "oov_recall": approx(1 / 3), "iv_recall": approx(0.5)}
    with pytest.raises(ValueError, match="every line"):
        metrics.segmentation_score(gold, [])
    with pytest.raises(ValueError, match="characters"):
        metrics.segmentation_score(gold, ["中国"])


def test_triples():
    gold = {"文": [("蓝桥", "作者", {"@value": "甲"})]}
    predicted = {"文": [("《蓝桥》", "作者", {"@value": "甲"}), ("蓝桥", "作者", {"@value": "乙"})]}
    precision, recall, f1 = metrics.triple_score(gold, predicted)
    assert (precision, recall) == (0.5, 1) and round(f1, 4) == 0.6667
    partial = {"文": [("人", "饰演", {"@value": "船长", "inWork": "春汛"})]}
    assert metrics.triple_score(partial, {"文": [("人", "饰演", {"@value": "船长"})]}) == (0, 0, 0)
    # Other texts are ignored, missing ones are empty, duplicates count once.
    assert metrics.triple_score(gold, {"别": predicted["文"]}) == (0, 0, 0)
    twice = {"文": [predicted["文"][0], ("蓝桥", "作者", {"@value": "甲"})]}
    assert metrics.triple_score(gold, twice) == (1, 1, 1)
    strings = {"a": [("x", "r", "y"), ("x", "r", "z")]}
    assert metrics.triple_score({"a": [("X", "r", "Y")]}, strings).f1 == approx(2 / 3)
    # One prediction that is an alias of two gold names: precision and recall count on their own side.
    aliases = {"北京": ["京城", "Peking"]}
    both = {"a": [("京城", "r", "o"), ("peking", "r", "o")]}
    assert metrics.triple_score(both, {"a": [("北京", "r", "o")]}, aliases) == (1, 1, 1)


def test_event_arguments():
    for gold, predicted, expected in [
        ("张三", "张三等3人", 0.571429), ("12月3日", "3日", 0.571429), ("ABC公司", "abc公司", 1),
    ]:
        assert metrics.argument_similarity(gold, predicted) == approx(expected)
    assert metrics.argument_similarity(["张三", "老张"], "老张") == 1
    gold = [[("胜负", "胜者", "张三"), ("胜负", "时间", "3日")]]
    assert metrics.argument_score(gold, [[("胜负", "胜者", "张三等3人")]]).precision == approx(0.571429)
    assert metrics.argument_score(gold, [[("胜负", "败者", "张三")]]) == (0, 0, 0)
    # Two predictions for one gold argument: only the better one counts, so that recall stays at most 1.
    result = metrics.argument_score([[("t", "r", "ab")]], [[("t", "r", "a"), ("t", "r", "ab")]])
    assert result == approx(0.5, 1, 2 / 3)


@pytest.mark.parametrize("answers, prediction, f1, em", [
    (["约3天", "三天左右"], "3天", 0.8, 0),
    (["Wi-Fi 6标准"], "wi-fi6标准", 0.666667, 0),
    (["6-12周左右", "6-12周"], "6-12周。", 1, 1),
    (["青山镇北路"], "青山北路", 0.444444, 0),
    (["2019年3月"], "2019年", 0.666667, 0),
    (["甲……乙"], "甲乙", 0.4, 0),
])
def test_dureader(answers, prediction, f1, em):
    assert metrics.dureader_f1(answers, prediction) == approx(f1)
    assert metrics.dureader_em(answers, prediction) == em
    result = metrics.dureader_score({1: answers, 2: ["甲"]}, {1: prediction})  # a missing answer is wrong
    assert result == {"f1": pytest.approx(50 * f1, abs=1e-4), "em": 50 * em}


def test_dureader_empty_prediction():
    assert metrics.dureader_f1(["甲"], "，") == 0
    with pytest.raises(ValueError):
        metrics.dureader_score({}, {})


def test_cmrc():
    assert metrics.cmrc_f1(["《春天》 里"], "春天里") == 1
    assert metrics.cmrc_em(["《春天》 里"], "春天里") == 0  # the blank inside survives
    assert metrics.cmrc_em(["Apple-1。"], " apple1 ") == 1
    # Units: 用 apple 手 机 against apple 手: run of 2, P 1, R 0.5.
    assert metrics.cmrc_f1(["用Apple手机"], "apple手") == approx(2 / 3)
    assert metrics.cmrc_score({"q": ["甲乙"], "r": ["丙"]}, {"q": "甲"}) == {
        "f1": approx(100 / 3), "em": 0, "average": approx(100 / 6),
    }


def test_sogou():
    answers = ["李白、杜甫", "李杜"]
    assert metrics.sogou_accuracy(answers, "杜甫，李白") == 1
    assert metrics.sogou_accuracy(answers, "李　杜") == 1
    assert metrics.sogou_accuracy(answers, "李白") == 0
    assert metrics.sogou_accuracy(answers, "，") == 0 == metrics.sogou_f1(answers, "")
    assert metrics.sogou_f1(answers, "李白") == approx(2 / 3)
    assert metrics.sogou_accuracy(["ABC12"], "ａｂｃ１２") == 1
    result = metrics.sogou_score({1: answers, 2: ["甲"]}, {1: "李白"})
    assert result == {"accuracy": 0, "f1": approx(1 / 3), "final": approx(1 / 6)}


@pytest.mark.parametrize("reference, hypothesis, expected", [
    ("基于注意力的短文本匹配方法", "基于注意力机制的文本匹配", (0.8, 0.608696, 0.8, 0.501651)),
    ("城市交通路由算法", "城市路由", (0.666667, 0.4, 0.666667, 0.088394)),
    ("天气", "天天气", (1.0, 0.666667, 0.8, 0.240281)),
])
def test_rouge_and_bleu(reference, hypothesis, expected):
    result = metrics.generation_score([reference], [hypothesis])
    assert tuple(result.values()) == approx(*expected)
    assert list(result) == ["rouge-1", "rouge-2", "rouge-l", "bleu"]


def test_rouge_variants_and_empty_text():
    assert metrics.rouge_l("天气", "天天气", compatible=True) == approx(1.0)
    assert metrics.rouge_l("ABC", "abc") == approx(1.0)
    assert metrics.rouge_n(["to", "be"], ["be"], n=1) == approx(2 / 3)
    assert set(metrics.generation_score(["天气"], [""]).values()) == {0.0}
    assert set(metrics.generation_score(["天气", "天"], ["", "地"]).values()) == {0.0}
    with pytest.raises(ValueError):
        metrics.generation_score([], [])


@given(st.text("甲乙丙丁 a", max_size=12), st.text("甲乙丙丁 a", max_size=12))
def test_scores_lie_between_0_and_1(first, second):
    values = [
        *metrics.generation_score([first], [second]).values(), metrics.argument_similarity(first, second),
        metrics.dureader_f1([first], second), metrics.cmrc_f1([first], second),
        metrics.sogou_f1([first], second),
    ]
    assert all(0 <= value <= 1 for value in values)
    if len(first) > 3:
        assert metrics.bleu(first, first) == approx(1.0) == metrics.rouge_l(first, first)


def query(**changes):
    base = {"sel": [0], "agg": [0], "cond_conn_op": 2, "conds": [[0, 2, "鹿岛"], [2, 0, "3000"]]}
    return {**base, **changes}


@pytest.fixture
def database():
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE Table_t01 (col_1 TEXT, col_2 TEXT, col_3 REAL)")
    rows = [("鹿岛", "5月1日", 3120.5), ("白沙", "5月2日", 11.0), ("海口", None, 900.0)]
    connection.executemany("INSERT INTO Table_t01 VALUES (?, ?, ?)", rows)
    yield connection
    connection.close()


def test_logical_form():
    shuffled = query(conds=[[2, 0, 3000], [0, 2, "鹿岛"]])
    assert metrics.logical_form_match(query(), shuffled)
    assert not metrics.logical_form_match(query(), query(cond_conn_op=1))
    assert not metrics.logical_form_match(query(), query(agg=[1]))
    two = query(conds=[[0, 2, "鹿岛"], [0, 2, "白沙"]])
    other = query(conds=[[0, 2, "海口"], [0, 2, "白沙"]])
    assert not metrics.logical_form_match(two, other)
    assert metrics.logical_form_match(two, other, by_column=True)  # the organiser sees one condition
    assert metrics.nl2sql_score([query(), two], [shuffled, other]) == 0.5
    with pytest.raises(ValueError):
        metrics.nl2sql_score([], [])


def test_execution(database):
    def rows(**changes):
        return metrics.execute(database, "t01", query(**changes))

    assert rows() == [("鹿岛",)]
    assert rows(conds=[[2, 2, "3120.5"]]) == rows(conds=[[2, 2, 3120.5]]) == [("鹿岛",)]
    eleven = rows(conds=[[2, 2, "11"]], sel=[2, 0], agg=[0, 0])
    assert eleven == rows(conds=[[2, 2, "11.0"]], sel=[0, 2], agg=[0, 0]) == [(11.0, "白沙")]
    assert rows(sel=[2], agg=[4], conds=[[2, 1, "1000"]]) == [(2,)]
    assert [set(row) for row in rows(sel=[0, 1], agg=[0, 0], conds=[[0, 2, "海口"]])] == [{None, "海口"}]
    assert rows(cond_conn_op=0) == "no connective"
    assert rows(conds=[]) == rows(sel=[], agg=[]) == "empty"
    assert rows(sel=[9]) == "failed"
    assert rows(agg=[17]) == "unknown code"
    match = metrics.execution_match
    assert match(database, "t01", query(), query(conds=query()["conds"][::-1]))
    assert not match(database, "t01", query(), query(cond_conn_op=1, conds=[[0, 2, "白沙"], [2, 1, "0"]]))
    assert match(database, "t01", query(sel=[9]), query(sel=[8]))  # both fail


def test_rows_are_a_multiset(database):
    database.execute("CREATE TABLE Table_a (col_1 TEXT, col_2 REAL, col_3 REAL)")
    database.executemany("INSERT INTO Table_a VALUES (?, ?, ?)", [("x", 1, 2), ("y", 2, 1)])
    first = query(sel=[1], conds=[[1, 0, "0"]], cond_conn_op=0)
    second = query(sel=[2], conds=[[1, 0, "0"]], cond_conn_op=0)
    assert metrics.execution_match(database, "a", first, second)
    assert not metrics.execution_match(database, "a", first, second, ordered=True)


def test_a_value_stays_a_value(database):
    attack = "x\" OR 1=1; DROP TABLE Table_t01; --"
    assert metrics.execute(database, "t01", query(conds=[[0, 2, attack]])) == []
    assert metrics.execute(database, 't01" --', query()) == "failed"
    assert len(database.execute("SELECT * FROM Table_t01").fetchall()) == 3
