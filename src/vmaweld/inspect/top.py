# SPDX-License-Identifier: GPL-2.0-or-later
"""`top` for VMAs: every process, live, and one of them in detail. Made for 80 columns over ssh."""

from typing import Any, ClassVar, Final

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Input, Static
from textual.widgets.data_table import ColumnKey
from textual.worker import get_current_worker

from vmaweld.inspect.census import Census, Counted, choose
from vmaweld.inspect.collect import inspect_process
from vmaweld.inspect.legend import MEANINGS
from vmaweld.inspect.report import Inspection
from vmaweld.inspect.text import OPEN_REASONS, source_line
from vmaweld.inspect.words import percent_text, size_text, user_name
from vmaweld.kernel.errors import KernelError
from vmaweld.words import count_text, printable

WARN_SHARE: Final = 0.8
ALARM_SHARE: Final = 0.95
OPEN_SEAMS_LISTED: Final = 200


_COLUMNS: Final[dict[str, int]] = {"PID": 8, "USER": 9, "VMAS": 7, "LIMIT": 7, "+/s": 7, "OPEN": 7, "NAME": 18}
"""The list's columns and their widths: 80 columns in all, with the space between and the scroll bar."""
_SORT_OF: Final = {"PID": "pid", "VMAS": "vmas", "+/s": "growth", "OPEN": "open", "NAME": "name"}


def _head(name: str, mark: str = "") -> Text:
    return Text(mark + name, justify="left" if name in ("USER", "NAME") else "right")


def _share_style(share: float) -> str:
    return "bold red" if share >= ALARM_SHARE else "yellow" if share >= WARN_SHARE else ""


class Detail(Screen[None]):
    """One process: counts, reasons, its open seams."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,backspace", "dismiss_detail", "Back"),
        ("r", "refresh", "Read again"),
        ("q", "app.quit", "Quit"),
    ]

    def __init__(self, pid: int, seconds: float) -> None:
        super().__init__()
        self._pid = pid
        self._seconds = seconds
        self._gone = False
        self._reading = False

    def compose(self) -> ComposeResult:
        """The words above, the open seams below."""
        with VerticalScroll():
            yield Static("reading ...", id="detail-text", markup=False)
            yield DataTable[str](id="detail-seams", cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Read now, and again every few seconds."""
        table = self.query_one("#detail-seams", DataTable)
        for head in ("OPEN SEAM AT", "LEFT", "RIGHT", "POPULATED", "HELD BY", "IN THE WAY"):
            table.add_column(head)
        self.action_refresh()
        self.set_interval(self._seconds, self.action_refresh)

    def action_dismiss_detail(self) -> None:
        """Back to the list."""
        self.dismiss()

    def action_refresh(self) -> None:
        """Read the process again now, unless that is going on, or it has ended."""
        if not self._reading and not self._gone:
            self._reading = True
            self._read()

    @work(thread=True)
    def _read(self) -> None:
        worker = get_current_worker()
        try:
            report = inspect_process(self._pid)
        except KernelError as error:
            if not worker.is_cancelled:
                self.app.call_from_thread(self._show_end, str(error))
            return
        if not worker.is_cancelled:
            self.app.call_from_thread(self._show, report)

    def _show_end(self, why: str) -> None:
        self._gone = True
        self._reading = False
        text = self.query_one("#detail-text", Static)
        text.update(f"{printable(why)}. What was last seen of it is gone with it; Escape goes back.")
        self.query_one("#detail-seams", DataTable).clear()

    def _show(self, report: Inspection) -> None:
        self._reading = False
        self.query_one("#detail-text", Static).update(_detail_text(report))
        table = self.query_one("#detail-seams", DataTable)
        row, scroll = table.cursor_row, table.scroll_y
        table.clear()
        for one in report.open[:OPEN_SEAMS_LISTED]:
            seam = one.seam
            table.add_row(
                f"{seam.address:x}",
                size_text(seam.left.size),
                size_text(seam.right.size),
                "?" if one.populated is None else f"{one.populated:,}",
                ", ".join(seam.reasons),
                one.obstacle or "nothing",
            )
        table.move_cursor(row=row)
        table.scroll_y = scroll


def _detail_text(report: Inspection) -> Text:
    text = Text()
    share = report.vmas / report.limit
    text.append(f"{printable(report.name)}", "bold")
    text.append(f"  pid {report.pid}  user {user_name(report.uid)}\n")
    text.append(f"{count_text(report.vmas, 'VMA')}", _share_style(share) or "bold")
    text.append(f", {percent_text(report.vmas, report.limit)} of {report.limit:,}; ")
    text.append(f"open seams: {len(report.open):,}; VMAs after welding: {report.after_welding:,}\n")
    text.append(source_line(report) + "\n\n", "dim")
    kinds = "  ".join(f"{kind} {total.vmas:,}" for kind, total in report.kinds.items())
    text.append(f"{kinds}\n\n")
    present = {name: count for name, count in report.reasons.items() if count}
    width = max(map(len, present), default=0)
    for name, count in present.items():
        text.append(f"{count:>7,}  ")
        text.append(f"{name:<{width}}  ", "yellow" if name in OPEN_REASONS else "")
        text.append(f"{MEANINGS[name]}\n", "dim")
    if len(report.open) > OPEN_SEAMS_LISTED:
        text.append(f"\nThe first {OPEN_SEAMS_LISTED} of {len(report.open):,} open seams:\n")
    elif not report.open:
        text.append("\nNo open seam.\n")
    return text


class ProcessList(Screen[None]):
    """Every process, in the order asked for."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("v", "sort('vmas')", "VMAs"),
        ("o", "sort('open')", "Open"),
        ("g", "sort('growth')", "Growth"),
        ("p", "sort('pid')", "PID"),
        ("n", "sort('name')", "Name"),
        ("r", "reverse", "Reverse"),
        ("slash", "filter", "Filter"),
        ("q", "app.quit", "Quit"),
    ]

    def __init__(self, seconds: float, only: str, sort: str) -> None:
        super().__init__()
        self._seconds = seconds
        self._only = only
        self._sort = sort
        self._reversed = False
        self._census = Census()
        self._counted: list[Counted] = []
        self._shown: list[int] = []
        self._counting = False

    def compose(self) -> ComposeResult:
        """A line of totals, the list, a line of filter."""
        with Vertical():
            yield Static("counting ...", id="summary", markup=False)
            yield Static("", id="note", markup=False)
            yield DataTable[Text](id="processes", cursor_type="row")
            # Selecting when the focus event comes would lose what was typed before it came.
            yield Input(placeholder="name, user or pid; Enter keeps, Escape clears", id="filter", select_on_focus=False)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Count now, and again every few seconds."""
        table = self.query_one("#processes", DataTable)
        for head, width in _COLUMNS.items():
            table.add_column(_head(head), key=head, width=width)
        table.focus()
        self._count_again()
        self.set_interval(self._seconds, self._count_again)

    def _count_again(self) -> None:
        if not self._counting:  # on a large or slow system one count may outlast the interval
            self._counting = True
            self._count()

    @work(thread=True)
    def _count(self) -> None:
        counted = self._census.take()
        if not get_current_worker().is_cancelled:
            self.app.call_from_thread(self._take_over, counted)

    def _take_over(self, counted: list[Counted]) -> None:
        self._counting = False
        self._counted = counted
        self._fill()

    def _fill(self) -> None:
        """Write the list anew; the cursor stays on its process, or where it was if that has gone."""
        table = self.query_one("#processes", DataTable)
        limit = self._census.limit
        shown = choose(self._counted, self._sort, self._only, turned=self._reversed)
        row = table.cursor_row
        selected = self._shown[row] if row < len(self._shown) else None
        scroll = table.scroll_y
        table.clear()
        for one in shown:
            style = _share_style(one.vmas / limit)
            table.add_row(
                Text(str(one.pid), justify="right"),
                Text(user_name(one.uid)),
                Text(f"{one.vmas:,}", style, justify="right"),
                Text(percent_text(one.vmas, limit), style, justify="right"),
                Text(f"{one.growth:+.0f}" if abs(one.growth) >= 0.5 else "", justify="right"),
                Text(f"{one.open_seams:,}", "yellow" if one.open_seams else "dim", justify="right"),
                Text(printable(one.name)),
            )
        self._shown = [one.pid for one in shown]
        table.move_cursor(row=self._shown.index(selected) if selected in self._shown else row, scroll=False)
        table.scroll_y = scroll
        for head in _COLUMNS:
            mark = ("^" if self._reversed else "v") if _SORT_OF.get(head) == self._sort else ""
            table.columns[ColumnKey(head)].label = _head(head, mark)
        self._write_summary(shown)

    def _write_summary(self, shown: list[Counted]) -> None:
        vmas = sum(one.vmas for one in shown)
        opened = sum(one.open_seams for one in shown)
        text = f"processes: {len(shown):,}  VMAs: {vmas:,}  open seams: {opened:,}  limit: {self._census.limit:,}"
        if self._only:
            text += f"  filter: {printable(self._only)}"
        self.query_one("#summary", Static).update(text)
        note = "exact" if self._census.exact else "by elimination (not root)"
        if self._census.refused:
            note += f"; {self._census.refused:,} of other users not readable"
        self.query_one("#note", Static).update(note + "; Enter: details")

    def action_sort(self, by: str) -> None:
        """Order the list anew."""
        self._sort = by
        self._reversed = False
        self._fill()
        self.query_one("#processes", DataTable).move_cursor(row=0)

    def action_reverse(self) -> None:
        """Turn the order round."""
        self._reversed = not self._reversed
        self._fill()

    def action_filter(self) -> None:
        """Ask what to show."""
        entry = self.query_one("#filter", Input)
        entry.add_class("shown")
        entry.value = self._only
        entry.action_select_all()
        entry.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Narrow the list while typing."""
        self._only = event.value.strip()
        self._fill()

    def on_input_submitted(self) -> None:
        """Keep the filter."""
        self._leave_filter()

    def on_key(self, event: Any) -> None:
        """Escape in the filter clears it."""
        if event.key == "escape" and self.query_one("#filter", Input).has_focus:
            self.query_one("#filter", Input).value = ""
            self._leave_filter()

    def _leave_filter(self) -> None:
        self.query_one("#filter", Input).remove_class("shown")
        self.query_one("#processes", DataTable).focus()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Show the process under the cursor."""
        if event.data_table.id == "processes" and event.cursor_row < len(self._shown):
            self.app.push_screen(Detail(self._shown[event.cursor_row], self._seconds))


class Top(App[None]):
    """The program.

    seconds: between two counts. only: a text that the name or user must contain, or a pid. sort: a key of `SORTS`.
    """

    TITLE = "vmaweld top"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "interrupt", show=False, priority=True)]
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #summary { height: 1; padding: 0 1; }
    #note { height: 1; padding: 0 1; color: $text-muted; }
    #filter { display: none; height: 1; border: none; padding: 0 1; }
    #filter.shown { display: block; }
    #processes { height: 1fr; }
    #detail-text { padding: 0 1; height: auto; }
    #detail-seams { height: auto; }
    """

    def __init__(self, seconds: float = 2.0, only: str = "", sort: str = "vmas") -> None:
        super().__init__()
        self._list = ProcessList(seconds, only, sort)

    def action_interrupt(self) -> None:
        """End as Ctrl-C ends every command: with status 130."""
        self.exit(return_code=130)

    def on_mount(self) -> None:
        """Show the list."""
        self.push_screen(self._list)
