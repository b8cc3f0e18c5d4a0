package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/handfast/handfast/master"
	"github.com/handfast/handfast/master/admin"
	"github.com/handfast/handfast/master/logging"
	"github.com/handfast/handfast/master/output"
)

func statusCommand() *cli.Command {
	return askCommand(cli.Command{
		Name:  "status",
		Usage: "show what the running master is doing",
		Description: "One line for each slot, and one for each worker that starts, lingers, drains, or stands by\n" +
			"while another one is on probation. What nobody can know is left out: workers that accept for\n" +
			"themselves are handed nothing off, and few workers say what they have open. A worker that is\n" +
			"hung takes no connections, or does not answer (--watchdog); one that is unhealthy fails --healthy-when.\n\n" +
			"Exit status: 0 it runs; 1 it does not answer, or with --ready a slot has no worker that is\n" +
			"ready. GET /readyz tells probes the same, but does not wait for slots that scale has added.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "show it again and again, in place on a terminal: q or Ctrl-C leaves, arrows or j, k, h and l scroll"},
			&cli.DurationFlag{Name: "interval", Value: time.Second, Usage: "between two looks, with --watch"},
			&cli.BoolFlag{Name: "json", Usage: "for programs: the answer of GET /v1/status; with --watch one a line"},
			&cli.BoolFlag{Name: "ready", Usage: "exit with status 1 unless each slot has a worker that is ready"},
		},
	}, func(c *cli.Context, m *admin.Client) error {
		if c.Duration("interval") < 10*time.Millisecond {
			return usagef("--interval %v: want at least 10ms", c.Duration("interval"))
		}
		again := c.Bool("watch")
		if again && c.Bool("ready") {
			return usagef("--ready, and --watch: want one of them")
		}
		if again && !c.Bool("json") {
			return watch(c.Context, c.App.Writer, c.Duration("interval"), m.Status)
		}
		for {
			status, err := m.Status(c.Context)
			switch {
			case err != nil && again && c.Context.Err() != nil:
				return nil // seen enough
			case err != nil:
				return err
			}
			if err := printStatus(c.App.Writer, &status, c.Bool("json"), again); err != nil {
				return err
			}
			if why := cmp.Or(status.NotReady(), status.NotInUse()); why != "" && c.Bool("ready") {
				return fmt.Errorf("not ready: %s", why)
			}
			if !again {
				return nil
			}
			select {
			case <-time.After(c.Duration("interval")):
			case <-c.Context.Done():
				return nil
			}
		}
	})
}

func printStatus(w io.Writer, s *master.Status, asJSON, again bool) error {
	if asJSON {
		encoder := json.NewEncoder(w)
		if !again {
			encoder.SetIndent("", "  ")
		}
		return encoder.Encode(s)
	}
	width := 0
	if file, ok := w.(*os.File); ok && output.IsTerminal(file) {
		width, _ = sizeOf(file)
	}
	_, err := io.WriteString(w, statusWithin(s, width))
	return err
}

// statusText is the status as people read it.
func statusText(s *master.Status) string { return statusWithin(s, 0) }

// statusWithin has lines of at most so many letters, as far as that is possible; 0 is any number.
func statusWithin(s *master.Status, width int) string {
	var above strings.Builder
	state := "ready"
	if why := s.NotReady(); why != "" {
		state = "not ready: " + why
	}
	fmt.Fprintf(&above, "%s %s, pid %d, up %s, %s\n", s.Name, s.Version, s.PID, age(s, s.Started), state)
	fmt.Fprintf(&above, "%s, route %s, link %s, by %s%s%s\n", strings.Join(s.Addresses, " "), s.Route, s.Link, s.Key, sessionsText(s), requestsText(s))
	fmt.Fprintf(&above, "%s%s%s\n", generationText(s), reloadText(s), upgradeText(s))
	above.WriteString(totalsText(s))
	if l := s.Largest; l != nil && l.Client != "" {
		fmt.Fprintf(&above, "client %s has %.0f%% of the connections (of the last %d, %s ago)\n", l.Client, 100*l.Share, l.Of, age(s, l.At))
	}
	if f := s.Fullest; f != nil {
		of := fmt.Sprintf("the last %d, %s ago", f.Of, age(s, f.At))
		if f.Open {
			of = fmt.Sprintf("%d that are open", f.Of)
		}
		fmt.Fprintf(&above, "slot %d has %.0f%% of the connections, the most of all slots (of %s)\n", f.Slot, 100*f.Share, of)
	}
	above.WriteString(drainingText(s) + "\n")
	rows, left := tableWithin(slotTable(s), width)
	below := left + saysText(s) + lastWordsText(s)
	return printable(wrap(above.String(), width) + rows + wrap(below, width))
}

// totalsText is what the table cannot say, since no slot or no worker of a slot has it.
func totalsText(s *master.Status) string {
	parked, refused := s.Totals.Parked, s.Totals.Refused
	for i := range s.Slots {
		parked -= s.Slots[i].Parked
		refused -= min(refused, s.Slots[i].Refused)
	}
	var all []string
	add := func(n uint64, format string) {
		if n > 0 {
			all = append(all, fmt.Sprintf(format, n))
		}
	}
	add(uint64(max(parked, 0)), "%d parked")
	add(refused, "%d refused")
	add(orZero(s.Totals.Gone), "%d gone")
	add(orZero(s.Totals.TakenBack), "%d taken back")
	add(uint64(s.Totals.Idle), "%d idle")
	if len(all) == 0 {
		return ""
	}
	return "of no slot: " + strings.Join(all, ", ") + "\n"
}

// orZero is 0 for what is not known.
func orZero(n *uint64) uint64 {
	if n == nil {
		return 0
	}
	return *n
}

// sessionsText says how sessions find their workers, and how often they did.
func sessionsText(s *master.Status) string {
	if s.Sessions == nil {
		return ""
	}
	return fmt.Sprintf(", sessions by %s (%d to their worker, %d to its successor)", s.Session, s.Sessions.ToWorker, s.Sessions.ToSuccessor)
}

// requestsText says which requests are looked at, if any.
func requestsText(s *master.Status) string {
	switch which := s.Requests(); which {
	case "":
		return ""
	case "first":
		return ", of the first request on a connection"
	default:
		return ", of " + which + " request"
	}
}

// saysText is what workers in slots say of themselves (--sd-notify), a line for each.
func saysText(s *master.Status) (text string) {
	for i := range s.Slots {
		if w := s.Slots[i].Worker; w != nil && w.Says != "" {
			text += fmt.Sprintf("slot %d says: %s\n", i, w.Says)
		}
	}
	if text != "" {
		text = "\n" + text
	}
	return text
}

// Bounds of what is shown of what workers wrote before they ended; --json has more.
const (
	maxLastWords   = 3                // lines of a worker
	maxLastWriters = 5                // workers that did not write the same
	recentEnd      = 10 * time.Minute // for so long they are shown although the slot is served again
)

// lastWordsText is what workers wrote last that ended without being told to. Workers that wrote the
// same are shown once: one configuration that is wrong ends all of them.
func lastWordsText(s *master.Status) string {
	var all []string
	slots := map[string][]int{} // by what their workers wrote
	for _, sl := range s.Slots {
		end := sl.LastEnd
		if end == nil || end.LastWords == "" || sl.Worker != nil && s.Now.Sub(end.At) > recentEnd {
			continue
		}
		lines := strings.Split(end.LastWords, "\n")
		words := "  " + strings.Join(lines[max(len(lines)-maxLastWords, 0):], "\n  ")
		if slots[words] == nil {
			all = append(all, words)
		}
		slots[words] = append(slots[words], sl.Slot)
	}
	text := ""
	for _, words := range all[:min(len(all), maxLastWriters)] {
		more := ""
		if others := len(slots[words]) - 1; others > 0 {
			more = fmt.Sprintf(" (and %d more)", others)
		}
		text += fmt.Sprintf("\nslot %d%s wrote last:\n%s\n", slots[words][0], more, words)
	}
	if left := len(all) - maxLastWriters; left > 0 {
		text += fmt.Sprintf("\nand %d more: handfast status --json\n", left)
	}
	return text
}

// leaving are the workers of a generation that linger, or those that drain.
type leaving struct {
	state                  string
	generation, workers    int
	since, until, deadline time.Time // of the first, and the last ones
}

// leavingBy returns them by their state, those that linger first, and by their generation.
func leavingBy(s *master.Status) (all []leaving) {
	for _, w := range s.Draining {
		if w.State != "lingering" && w.State != "draining" || w.Deadline == nil {
			continue
		}
		at := slices.IndexFunc(all, func(l leaving) bool { return l.state == w.State && l.generation == w.Generation })
		if at < 0 {
			at = len(all)
			all = append(all, leaving{state: w.State, generation: w.Generation, since: w.Since})
		}
		l := &all[at]
		l.workers++
		if w.Since.Before(l.since) {
			l.since = w.Since
		}
		if w.Until != nil && w.Until.After(l.until) {
			l.until = *w.Until
		}
		if w.Deadline.After(l.deadline) {
			l.deadline = *w.Deadline
		}
	}
	slices.SortStableFunc(all, func(a, b leaving) int {
		return cmp.Or(cmp.Compare(b.state, a.state), cmp.Compare(a.generation, b.generation))
	})
	return all
}

// drainingText is a line for each generation of which workers linger, and for each of which workers drain.
func drainingText(s *master.Status) (text string) {
	for _, l := range leavingBy(s) {
		most := span(l.deadline.Sub(s.Now)) + " more at most"
		if l.until.IsZero() {
			text += fmt.Sprintf("generation %d: %d %s since %s, %s\n", l.generation, l.workers, l.state, age(s, l.since), most)
			continue
		}
		text += fmt.Sprintf("generation %d: %d %s for its clients since %s, %s more if none comes back, %s (handfast drain --now ends that)\n",
			l.generation, l.workers, l.state, age(s, l.since), span(l.until.Sub(s.Now)), most)
	}
	return text
}

// generationText is what the slots run.
func generationText(s *master.Status) string {
	earliest := s.Generation
	for i := range s.Slots {
		if w := s.Slots[i].Worker; w != nil {
			earliest = min(earliest, w.Generation)
		}
	}
	if earliest < s.Generation {
		return fmt.Sprintf("generations %d to %d", earliest, s.Generation)
	}
	return fmt.Sprintf("generation %d", s.Generation)
}

// reloadText is what there is to say of the last reload.
func reloadText(s *master.Status) string {
	r := s.Reload
	switch {
	case r == nil:
		return ""
	case r.Ended == nil:
		text := fmt.Sprintf(", reload: %d of %d slots since %s", r.Done, r.Slots, age(s, r.Began))
		if r.Probation != nil {
			text += fmt.Sprintf(", on probation for %s more", span(r.Probation.Sub(s.Now)))
		}
		if r.Queued {
			text += ", and another one follows"
		}
		return text
	case r.Error != "":
		reason, _, _ := strings.Cut(r.Error, "; it wrote last:\n") // which is shown below
		return fmt.Sprintf(", %s ago %s", age(s, *r.Ended), logging.WithoutPackages(reason))
	default:
		return fmt.Sprintf(", reloaded %s ago", age(s, *r.Ended))
	}
}

// upgradeText is what there is to say of the last upgrade.
func upgradeText(s *master.Status) string {
	switch u := s.Upgrade; {
	case u.At == nil:
		return ""
	case u.Error != "":
		reason, _, _ := strings.Cut(u.Error, "\n")
		return fmt.Sprintf("; not upgraded %s ago: %s", age(s, *u.At), logging.WithoutPackages(reason))
	default:
		return fmt.Sprintf("; upgraded %s ago, from %s", age(s, *u.At), u.From)
	}
}

// titles are those of the table's columns, and the page's.
var titles = []string{"SLOT", "ADDRESS", "STATE", "PID", "GEN", "UPTIME", "MEMORY", "HANDSHAKES", "HANDED OFF", "ACCEPTED", "RATE/S", "OPEN", "QUEUE", "PARKED", "REFUSED",
	"FULL", "HANDED BACK", "RESTARTS", "LAST EXIT"}

// dispensable are columns that a narrow window is without, the first one first.
var dispensable = []string{"UPTIME", "ACCEPTED"}

// rare are columns that are there only if they have more than 0.
var rare = []string{"FULL", "HANDED BACK"}

// slotTable is a row of titles, one for each slot, and one for each worker that drains.
func slotTable(s *master.Status) [][]string {
	rows := [][]string{titles}
	for i := range s.Slots {
		sl := &s.Slots[i]
		worker := sl.Worker
		if worker == nil {
			worker = sl.Next
		}
		rows = append(rows, append(workerRow(s, sl.Slot, strings.Join(sl.Addresses, " "), sl.State, worker),
			figure(sl.Handshakes), figure(sl.HandedOff), accepted(worker), rate(sl.Rate), cmp.Or(open(worker), figure(sl.Open)), figure(sl.Queue), fmt.Sprint(sl.Parked), fmt.Sprint(sl.Refused),
			figure(sl.MailboxFull), figure(sl.HandedBack), fmt.Sprint(sl.Restarts), lastExit(s, sl)))
		if sl.Worker != nil && sl.Next != nil {
			rows = append(rows, aside(s, sl.Next))
		}
		if sl.Standby != nil {
			rows = append(rows, aside(s, sl.Standby))
		}
	}
	for i := range s.Draining {
		rows = append(rows, aside(s, &s.Draining[i]))
	}
	return rows
}

// aside is the row of a worker beside the one in the slot.
func aside(s *master.Status, w *master.WorkerStatus) []string {
	row := append(workerRow(s, w.Slot, "", w.State, w), "", "", accepted(w), "", open(w))
	return append(row, make([]string, len(titles)-len(row))...)
}

// lastExit says how the slot's last worker ended that nobody had told to, and when there will be another try.
func lastExit(s *master.Status, sl *master.SlotStatus) string {
	var text []string
	if end := sl.LastEnd; end != nil {
		text = append(text, fmt.Sprintf("%s, %s ago", end.Why, age(s, end.At)))
	}
	if sl.NextStart != nil && sl.Worker == nil && sl.Next == nil {
		text = append(text, fmt.Sprintf("next try in %s", span(sl.NextStart.Sub(s.Now))))
	}
	return strings.Join(text, "; ")
}

func workerRow(s *master.Status, slot int, addresses, state string, w *master.WorkerStatus) []string {
	row := []string{fmt.Sprint(slot), addresses, state, "", "", "", ""}
	if w != nil {
		row[6] = memory(w.Memory)
		row[3], row[4], row[5] = fmt.Sprint(w.PID), fmt.Sprint(w.Generation), age(s, w.Started)
		if w.PID == 0 { // it is being started
			row[3] = "-"
		}
	}
	return row
}

func accepted(w *master.WorkerStatus) string {
	if w == nil {
		return ""
	}
	return figure(w.Accepted)
}

func open(w *master.WorkerStatus) string {
	if w == nil {
		return ""
	}
	if w.MaxOpen != nil && w.Open != nil {
		return fmt.Sprintf("%d/%d", *w.Open, *w.MaxOpen)
	}
	return figure(w.Open)
}

// memory is empty when it is not known.
func memory(n *int64) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf("%d MiB", *n>>20)
}

// figure is empty when it is not known.
func figure[T uint64 | int](n *T) string {
	if n == nil {
		return ""
	}
	return fmt.Sprint(*n)
}

// rate is empty when it is not known.
func rate(perSecond *float64) string {
	switch {
	case perSecond == nil:
		return ""
	case *perSecond < 10:
		return fmt.Sprintf("%.1f", *perSecond)
	default:
		return fmt.Sprintf("%.0f", *perSecond)
	}
}

// tableWithin is the table, and what there is no room for beside it in so many letters: how workers ended is said in lines
// of their own, columns in which all is 0 are only named, and then those that are dispensable.
func tableWithin(rows [][]string, width int) (table, left string) {
	const last = "LAST EXIT"
	shown := columnsOf(rows, func(title, cell string) bool { return cell != "" && (cell != "0" || !slices.Contains(rare, title)) })
	fits := func(padding int) bool {
		table = tableOf(rows, shown, padding)
		return width == 0 || widest(strings.Split(table, "\n")) <= width
	}
	if fits(2) || fits(1) {
		return table, ""
	}
	if at := slices.Index(rows[0], last); shown[len(shown)-1] == at {
		shown = shown[:len(shown)-1]
		left = endsText(rows[1:], at)
	}
	some := columnsOf(rows, func(_, cell string) bool { return cell != "" && cell != "0" && cell != "0.0" })
	var zero []string
	for i := len(shown) - 1; i > 0 && !fits(1); i-- {
		if column := shown[i]; !slices.Contains(some, column) {
			shown = slices.Delete(shown, i, i+1)
			zero = append(zero, rows[0][column])
		}
	}
	var more []string
	for _, title := range dispensable {
		if i := slices.Index(shown, slices.Index(rows[0], title)); i >= 0 && !fits(1) {
			shown = slices.Delete(shown, i, i+1)
			more = append(more, title)
		}
	}
	if len(more) > 0 {
		left = "no room for " + strings.Join(more, ", ") + "\n" + left
	}
	if len(zero) > 0 {
		slices.Reverse(zero)
		left = "all 0: " + strings.Join(zero, ", ") + "\n" + left
	}
	if left != "" {
		left = "\n" + left
	}
	return table, left
}

// endsText has a line for each way in which workers ended, which a column says. Where one thing ends all of them that is one line.
func endsText(rows [][]string, column int) (text string) {
	var ways []string
	slots := map[string][]string{} // by how their workers ended
	for _, row := range rows {
		if how := row[column]; how != "" {
			if slots[how] == nil {
				ways = append(ways, how)
			}
			slots[how] = append(slots[how], row[0])
		}
	}
	for _, how := range ways {
		more := ""
		if others := len(slots[how]) - 1; others > 0 {
			more = fmt.Sprintf(" (and %d more)", others)
		}
		text += fmt.Sprintf("slot %s%s: %s\n", slots[how][0], more, how)
	}
	return text
}

// columnsOf returns which columns have such a cell below their title. The first one, the slot, always does.
func columnsOf(rows [][]string, has func(title, cell string) bool) (columns []int) {
	for column := range rows[0] {
		if column == 0 || slices.ContainsFunc(rows[1:], func(row []string) bool { return has(rows[0][column], row[column]) }) {
			columns = append(columns, column)
		}
	}
	return columns
}

// tableOf is the table with these columns, and so many spaces between them.
func tableOf(rows [][]string, columns []int, padding int) string {
	var text, trimmed strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, padding, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(columns))
		for i, column := range columns {
			if cells[i] = row[column]; cells[i] == "" && i < len(columns)-1 {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(table, strings.Join(cells, "\t"))
	}
	table.Flush()
	for line := range strings.Lines(text.String()) {
		trimmed.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return trimmed.String()
}

// wrap breaks lines between words where they are longer than width. What a line goes on with is moved in.
func wrap(text string, width int) string {
	const in = "  "
	if width <= 4*len(in) {
		return text
	}
	var out strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		for letters := []rune(line); len(letters) > width; letters = []rune(line) {
			at := width
			for at > len(in) && letters[at] != ' ' {
				at--
			}
			if at <= len(in) {
				at = width // one long word
			}
			out.WriteString(strings.TrimRight(string(letters[:at]), " ") + "\n")
			line = in + strings.TrimLeft(string(letters[at:]), " ")
		}
		out.WriteString(line + "\n")
	}
	return out.String()
}

// age is how long ago something was, as the master's clock has it, in two units at most.
func age(s *master.Status, since time.Time) string { return span(s.Now.Sub(since)) }

func span(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
}
