"""What node 0 makes of all nodes' states, without clocks and processes."""

from runner.inside.judge import WITHOUT_FIRST, Cause, Judge, State, Word


def judge(count: int = 3) -> Judge:
    return Judge(count, silence_s=10, arrival_s=100, now_s=0)


def states(**changes: object) -> dict[int, State]:
    """Three nodes that train; `node1=State(…)` is how one of them is instead."""
    alike = {number: State(1, is_ready=True) for number in range(3)}
    others = {int(name.removeprefix("node")): value for name, value in changes.items()}
    return {number: state for number, state in {**alike, **others}.items() if isinstance(state, State)}


def test_ranks_start_when_every_node_is_ready() -> None:
    assert judge().look(states(node2=State(1)), 1)[0] == Word()
    assert judge().look(states(node2=None), 1)[0] == Word()
    assert judge().look(states(), 1)[0] == Word(are_ready=True)


def test_a_node_that_is_silent_for_too_long_is_gone_once_and_ends_all() -> None:
    one = judge()
    one.look(states(), 1)
    later = states(node0=State(2, is_ready=True), node1=State(2, is_ready=True))
    assert one.look(later, 11) == (Word(are_ready=True), {})
    word = Word(cause=Cause(2, 1))
    assert one.look(later, 11.5) == (word, {2: "node 2 is gone: nothing was heard of it for 10 s"})
    assert one.look(later, 12) == (word, {})


def test_a_node_has_more_time_to_come_than_to_be_silent() -> None:
    one = judge()
    assert one.look(states(node1=None), 99)[1] == {}
    assert one.look(states(node1=None), 101)[1][1] == "node 1 did not come within 100 s"


def test_a_node_that_has_ended_may_be_silent() -> None:
    one = judge()
    ended = states(node1=State(1, is_ready=True, exit_code=0))
    one.look(ended, 1)
    assert one.look(ended, 1_000)[1].keys() == {0, 2}


def test_nodes_that_end_in_order_end_no_other() -> None:
    for exit_code in (0, 3):
        ended = State(1, is_ready=True, exit_code=exit_code)
        assert judge().look(states(node1=ended), 1)[0] == Word(are_ready=True)
        assert judge().look(dict.fromkeys(range(3), ended), 1)[0] == Word(are_ready=True, are_over=True)


def test_the_node_whose_rank_died_of_a_signal_is_the_cause_though_others_failed_of_it_sooner() -> None:
    one = judge()
    failed, killed = State(1, is_ready=True, exit_code=1), State(1, is_ready=True, exit_code=137)
    assert one.look(states(node0=failed), 1)[0].cause == Cause(0, 1)
    assert one.look(states(node0=failed, node2=killed), 2)[0].cause == Cause(2, 137)


def test_the_first_node_leaves_when_the_others_have() -> None:
    ended, left = State(1, exit_code=0), State(2, exit_code=0, has_left=True)
    assert not judge(2).look({0: ended, 1: ended}, 1)[0].have_left
    assert judge(2).look({0: ended, 1: left}, 1)[0].have_left


def test_states_and_words_come_back_as_they_were() -> None:
    for word in (Word(), WITHOUT_FIRST, Word(are_ready=True, cause=Cause(1, 3))):
        assert Word.of(word.text().encode()) == word
    state = State(7, is_ready=True, exit_code=137, has_left=True)
    assert State.of(state.text().encode()) == state
