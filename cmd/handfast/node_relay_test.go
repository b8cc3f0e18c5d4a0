package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// chat is a server whose workers talk as adapters of @socket.io/cluster-adapter do. Paths make
// them talk, and they say what they hear.
const chat = `
	const uid = 'u' + slot + '-' + generation, source = '_sio_adapter';
	let next = 0;
	process.on('message', (m) => {
		if (m.source !== source) return;
		const { data } = m;
		switch (m.type) {
		case 1: say('greeted', slot, m.uid); break;
		case 3: say('heard', slot, JSON.stringify(data)); break;
		case 7: process.send({ type: 8, uid, requesterUid: m.uid, source, data: slot }, null, {}, () => {}); break;
		case 8: say('answered', uid, m.requesterUid, data); break;
		case 99:
			if (data.n !== next++) say('gap', slot, data.n);
			if (data.last) say('all', slot, next);
		}
	});
	const emit = (type, data) => process.send({ type, uid, nsp: '/', source, data }, null, {}, () => {});
	server.prependListener('request', (req) => {
		const [, what, n] = req.url.split('/');
		if (what === 'emit') emit(3, { text: 'é\n', binary: Buffer.from([0, 255]), number: 1e21 });
		if (what === 'ask') emit(7);
		if (what === 'flood') for (let i = 0; i < n; i++) emit(99, { n: i, last: i === n - 1, text: 'x'.repeat(64 << 10) });
	});
	emit(1);
	process.on('disconnect', () => say('cut off', slot, generation));
	server.listen(PORT);
`

// TestNodeRelay: what one worker's adapter says reaches all others, an answer only who has asked;
// also in the next generation. A worker that drains has cut itself off, as under Node's own
// primary, and that disturbs nobody.
func TestNodeRelay(t *testing.T) {
	t.Parallel()
	b := startNode(t, 3, chat, nodeOptions{})
	for generation := 1; generation <= 2; generation++ {
		from := sourceIn(0, 3, 0)
		b.mustGet(from, "/emit")
		heard := b.hears("heard", 2*generation)[2*(generation-1):]
		slices.Sort(heard)
		const data = `{"text":"é\n","binary":{"type":"Buffer","data":[0,255]},"number":1e+21}`
		if want := []string{"heard 1 " + data, "heard 2 " + data}; !slices.Equal(heard, want) {
			t.Errorf("workers say %q, want %q", heard, want)
		}
		b.mustGet(from, "/ask")
		answers := b.hears("answered", 2*generation)[2*(generation-1):]
		slices.Sort(answers)
		uid := fmt.Sprint("u0-", generation)
		if want := []string{"answered " + uid + " " + uid + " 1", "answered " + uid + " " + uid + " 2"}; !slices.Equal(answers, want) {
			t.Errorf("workers say %q, want %q", answers, want)
		}
		if generation == 1 {
			open, err := b.dial(sourceIn(1, 3, 0)) // which the old worker goes on serving
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			request(open, "/sleep/2000ms")
			b.signal(unix.SIGUSR2)
			b.await("reload finished")
			b.hears("cut off", 3)
		}
	}
}

// TestNodeRelayStopped: while one worker is stopped the others chat, and hear all. What the
// master keeps for it is bounded, and it takes part again when it goes on.
func TestNodeRelayStopped(t *testing.T) {
	t.Parallel()
	// Messages of 64 KiB: all together are more than is kept for a worker, and each flood less, so that those that are slow to
	// read miss none.
	const floods, messages = 4, 100
	// Memory is to be what is kept, and little of what was.
	b := startNode(t, 3, chat, nodeOptions{env: []string{"GOGC=20"}})
	b.mustGet(sourceIn(0, 3, 0), "/flood/1") // what a chat costs at all
	b.hears("all", 2)
	before := b.memory()
	stopped := b.worker(1)
	freeze(t, stopped)
	for i := range floods {
		b.mustGet(sourceIn(0, 3, 0), fmt.Sprint("/flood/", messages))
		if all := b.hears("all 2", i+2)[i+1]; all != fmt.Sprint("all 2 ", (i+1)*messages+1) {
			t.Errorf("a worker says %q after %d floods", all, i+1)
		}
	}
	b.mustGet(sourceIn(2, 3, 0), "/")
	if grown := b.memory() - before; grown > 100<<20 {
		t.Errorf("the master has grown by %d MiB", grown>>20)
	}
	report := b.await("worker does not read: messages of other workers were dropped, its clients miss them")
	if found := regexp.MustCompile(`"dropped":(\d+)`).FindStringSubmatch(report.text); found == nil {
		t.Errorf("the log says %s", report.text)
	}
	unix.Kill(stopped, unix.SIGCONT)
	if !eventually(func() bool {
		b.mustGet(sourceIn(0, 3, 0), "/emit")
		return len(b.said("heard 1")) > 0
	}) {
		t.Error("the stopped worker does not hear again")
	}
	if a := b.mustGet(sourceIn(1, 3, 0), "/"); a.pid != stopped {
		t.Errorf("%+v", a)
	}
}

// memory is what the master has in memory, in bytes.
func (b *instance) memory() int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.cmd.Process.Pid))
	if err != nil {
		b.t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		b.t.Fatal(err)
	}
	return kib << 10
}
