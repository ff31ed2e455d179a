"""Scores of NL2SQL (TableQA): logical form and execution."""

import collections
import sqlite3

OPERATORS = (">", "<", "==", "!=")
AGGREGATES = ("", "AVG", "MAX", "MIN", "COUNT", "SUM")
CONNECTIVES = ("", "AND", "OR")


def logical_form_match(gold, predicted, *, by_column=False):
    """Tell whether two queries have equal connectives and equal sets of selected columns and of conditions.

    Args:
        gold, predicted: {"sel": columns, "agg": aggregates, "cond_conn_op": connective,
            "conds": [column, operator, value]}, by the numbers of the data set; values are compared as str.
        by_column: like the organiser's checker, keep only the last condition on each column.
    """
    return _logical_form(gold, by_column) == _logical_form(predicted, by_column)


def _logical_form(query, by_column):
    conditions = [(column, operator, str(value)) for column, operator, value in query["conds"]]
    if by_column:
        conditions = {condition[0]: condition for condition in conditions}.values()
    selected = frozenset(zip(query["sel"], query["agg"], strict=True))
    return query["cond_conn_op"], selected, frozenset(conditions)


def execution_match(connection, table_id, gold, predicted, *, ordered=False):
    """Tell whether two queries give the same rows.

    The values within a row are sorted, so that the order of the selected columns does not matter. Two queries
    that fail for the same reason are equal, as in the organiser's checker.

    Args:
        connection: open sqlite3 connection.
        table_id: the id of the table in the data set; the database calls it `Table_<id>`.
        gold, predicted: queries as for `logical_form_match`.
        ordered: like the organiser's checker, also compare the order of the rows.
    """
    results = [execute(connection, table_id, query) for query in (gold, predicted)]
    if not ordered:
        results = [x if isinstance(x, str) else collections.Counter(x) for x in results]
    return results[0] == results[1]


def execute(connection, table_id, query):
    """Run a query; return its rows as tuples of sorted values, or a str that says why it cannot be run.

    Values are bound as parameters and columns come from their numbers: nothing of a value can act as SQL.
    Columns with numbers must be declared REAL in the database, and texts TEXT: sqlite converts the bound str.
    """
    reason = _invalid(query)
    if reason:
        return reason
    columns = zip(query["agg"], query["sel"], strict=True)
    selected = ", ".join(f"{AGGREGATES[aggregate]}({_column(column)})" for aggregate, column in columns)
    joint = f" {CONNECTIVES[query['cond_conn_op']]} "
    where = joint.join(f"{_column(column)} {OPERATORS[operator]} ?" for column, operator, _ in query["conds"])
    table = str(table_id).replace('"', '""')
    values = [str(value) for _, _, value in query["conds"]]
    try:
        rows = connection.execute(f'SELECT {selected} FROM "Table_{table}" WHERE {where}', values).fetchall()
    except sqlite3.Error:
        return "failed"
    # None and numbers do not compare with str: the type goes first.
    return [tuple(sorted(row, key=lambda value: (str(type(value)), value or 0))) for row in rows]


def _invalid(query):
    """Return why a query is malformed, or None."""
    if not query["sel"] or len(query["sel"]) != len(query["agg"]) or not query["conds"]:
        return "empty"
    if query["cond_conn_op"] == 0 and len(query["conds"]) > 1:
        return "no connective"
    known = (
        all(aggregate in range(len(AGGREGATES)) for aggregate in query["agg"])
        and all(operator in range(len(OPERATORS)) for _, operator, _ in query["conds"])
        and query["cond_conn_op"] in range(len(CONNECTIVES))
    )
    return None if known else "unknown code"


def _column(number):
    return f"col_{int(number) + 1}"


def nl2sql_score(gold, predicted):
    """Return the share of queries whose logical form is right, in [0, 1].

    Args:
        gold, predicted: lists of queries as for `logical_form_match`.
    """
    if len(gold) != len(predicted) or not gold:
        raise ValueError(f"queries must be equally many, at least one; got {len(gold)} and {len(predicted)}.")
    return sum(map(logical_form_match, gold, predicted)) / len(gold)
