package fdpass

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/handfast/handfast/fdpass/fdtest"
)

// TestGolden pins the bytes that doc.go promises to workers in other languages.
// If it fails, the protocol has changed: that needs another version number.
func TestGolden(t *testing.T) {
	for _, v := range []struct {
		typ Type
		hs  []Handoff
		hex string
	}{
		{TypeReady, nil, "01 02 0000 0018 0000"},
		{TypeLeave, nil, "01 03 0000 0018 0000"},
		{TypeHandoff, []Handoff{
			{Client: netip.MustParseAddrPort("192.0.2.1:8080")},
			{Client: netip.MustParseAddrPort("[fe80::1%7]:443"), Flags: FlagProxied},
			{},
		}, `01 01 0003 0018 0000
			00 04 1f90 c0000201 000000000000000000000000 00000000
			01 06 01bb fe800000000000000000000000000001 00000007
			00 00 0000 00000000000000000000000000000000 00000000`},
		{TypeReturn, []Handoff{{Client: netip.MustParseAddrPort("[::ffff:192.0.2.1]:1"), Flags: 2}}, `01 04 0001 0018 0000
			02 06 0001 00000000000000000000ffffc0000201 00000000`},
	} {
		want, err := hex.DecodeString(strings.Join(strings.Fields(v.hex), ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := appendMessage(nil, v.typ, v.hs, false); !bytes.Equal(got, want) {
			t.Errorf("%s %v is\n%x, want\n%x", v.typ, v.hs, got, want)
		}
	}
	for name, v := range map[string][2]int{
		"largest message": {maxMessage, 7688},
		"largest batch":   {MaxBatch, 64},
		"handoff":         {int(TypeHandoff), 1},
		"ready":           {int(TypeReady), 2},
		"leave":           {int(TypeLeave), 3},
		"return":          {int(TypeReturn), 4},
		"listen":          {int(TypeListen), 5},
		"report":          {int(TypeReport), 6},
		"ping":            {int(TypePing), 7},
		"pong":            {int(TypePong), 8},
		"hand back":       {int(TypeHandBack), 9},
		"slots":           {int(TypeSlots), 10},
		"pass":            {int(TypePass), 11},
		"most passages":   {MaxPassages, 64},
		"flag proxied":    {int(FlagProxied), 1},
		"flag unplaced":   {int(FlagUnplaced), 2},
		"most details":    {MaxDetails, 4096},
	} {
		if v[0] != v[1] {
			t.Errorf("%s: %d, want %d", name, v[0], v[1])
		}
	}
}

// TestReport: the bytes that doc.go promises, and that it arrives.
func TestReport(t *testing.T) {
	fdtest.NoLeaks(t)
	sent := Report{Open: 0x0102030405060708, Accepted: 0x1112131415161718, Passed: 0x21222324}
	const want = "0106000100180000" + "21222324" + "0102030405060708" + "1112131415161718" + "00000000"
	if got := hex.EncodeToString(appendReport(nil, sent)); got != want {
		t.Errorf("a report is\n%s, want\n%s", got, want)
	}
	master, worker := pair(t)
	if err := worker.TrySendReport(sent); err != nil {
		t.Fatal(err)
	}
	var m Message
	if err := master.Receive(&m); err != nil || m.Type != TypeReport || m.Report != sent || len(m.Handoffs) > 0 {
		t.Errorf("received %+v, error %v", m, err)
	}
	// None of these is one.
	fds := sockets(t, 2)
	send(t, worker, TypeReport, nil)
	send(t, worker, TypeReport, handoffs(fds[0]))
	send(t, worker, TypeReport, handoffs(fds...))
	for range 3 {
		wantError(t, master, ErrMalformed)
	}
	for full := false; !full; full = worker.TrySendReport(sent) == ErrFull {
	}
}

// TestDetails: the bytes that doc.go promises, for who can read them and for nobody else.
func TestDetails(t *testing.T) {
	fdtest.NoLeaks(t)
	fds := sockets(t, 3)
	sent := detailed(fds...)
	want := "0109" + "0003" + "001c" + "0005" +
		"00040001" + "7f000001" + strings.Repeat("00", 16) + "0002" + "0000" +
		"00040002" + "7f000001" + strings.Repeat("00", 16) + "0000" + "0000" +
		"00040003" + "7f000001" + strings.Repeat("00", 16) + "0003" + "0000" +
		hex.EncodeToString([]byte("abcde"))
	if got := hex.EncodeToString(appendMessage(nil, TypeHandBack, sent, true)); got != want {
		t.Errorf("details are\n%s, want\n%s", got, want)
	}
	ours, theirs := pair(t)
	for _, reads := range []bool{false, true} {
		if reads {
			ours.SendDetails()
		}
		send(t, ours, TypeHandoff, sent)
		var m Message
		if err := theirs.Receive(&m); err != nil || len(m.Handoffs) != 3 {
			t.Fatalf("received %+v, error %v", m, err)
		}
		for i, h := range m.Handoffs {
			if want := sent[i].Details; reads && h.Details != want || !reads && h.Details != "" || h.Client != sent[i].Client {
				t.Errorf("%v has details %q, want %q if they can be read: %v", h.Client, h.Details, want, reads)
			}
		}
		CloseHandoffs(m.Handoffs)
	}
	good := appendMessage(nil, TypeHandoff, sent, true)
	for what, b := range map[string][]byte{
		"more than the records say": edit(append(bytes.Clone(good), 'f'), 7, 6),
		"less":                      edit(good[:len(good)-1], 7, 4),
		"none, though it says some": good[:len(good)-5],
		"some, though it says none": edit(good, 7, 0),
		"too much":                  edit(append(bytes.Clone(good), make([]byte, MaxDetails-4)...), 6, 16),
	} {
		if _, _, err := parseAll(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: error %v", what, err)
		}
	}
}

// TestFit: what one message can carry arrives whole, and what is too long for any travels without its details.
func TestFit(t *testing.T) {
	fdtest.NoLeaks(t)
	fd := sockets(t, 1)[0]
	of := func(n, size int) []Handoff {
		return slices.Repeat([]Handoff{{FD: fd, Details: Details(make([]byte, size))}}, n)
	}
	ours, theirs := pair(t)
	ours.SendDetails()
	for _, v := range []struct {
		hs   []Handoff
		want int
	}{
		{nil, 0}, {of(1, 0), 1}, {of(MaxBatch+1, 0), MaxBatch}, {of(MaxBatch+1, MaxDetails/MaxBatch), MaxBatch},
		{of(2, MaxDetails), 1}, {of(3, MaxDetails/2), 2}, {of(3, MaxDetails+1), 3}, {append(of(1, 1), of(1, MaxDetails)...), 1},
	} {
		n := Fit(v.hs)
		if n != v.want {
			t.Errorf("%d of %d fit, want %d", n, len(v.hs), v.want)
			continue
		}
		if n < len(v.hs) && ours.TrySend(TypeHandoff, v.hs) == nil {
			t.Errorf("%d connections in one message, and %d fit", len(v.hs), n)
		}
		send(t, ours, TypeHandoff, v.hs[:n])
		var m Message
		if err := theirs.Receive(&m); err != nil || len(m.Handoffs) != n {
			t.Fatalf("received %d of %d, error %v", len(m.Handoffs), n, err)
		}
		for i, h := range m.Handoffs {
			if want := len(v.hs[i].sentDetails()); len(h.Details) != want {
				t.Errorf("%d bytes of details, want %d", len(h.Details), want)
			}
		}
		CloseHandoffs(m.Handoffs)
	}
}

// TestSlots: the bytes that doc.go promises, and that the number arrives.
func TestSlots(t *testing.T) {
	fdtest.NoLeaks(t)
	const want = "010a000100180000" + "00000000" + "00000400" + "00000001" + "000000000000000000000000"
	if got := hex.EncodeToString(appendSlots(nil, 1024, true)); got != want {
		t.Errorf("slots are\n%s, want\n%s", got, want)
	}
	master, worker := pair(t)
	fdtest.Check(t, master.TrySendSlots(1024, true))
	var m Message
	if err := worker.Receive(&m); err != nil || m.Type != TypeSlots || m.Slots != 1024 || !m.Replaced || len(m.Handoffs) > 0 {
		t.Errorf("received %+v, error %v", m, err)
	}
	send(t, master, TypeSlots, nil)
	wantError(t, worker, ErrMalformed)
	send(t, master, TypeSlots, handoffs(sockets(t, 1)...))
	wantError(t, worker, ErrMalformed)
	for full := false; !full; full = master.TrySendSlots(1, false) == ErrFull {
	}
}

// detailed are connections with details, the second one without.
func detailed(fds ...int) (hs []Handoff) {
	for i, fd := range fds {
		hs = append(hs, Handoff{FD: fd, Client: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(i+1)), Details: []Details{"ab", "", "cde"}[i]})
	}
	return hs
}

// TestPing: question and answer carry nothing.
func TestPing(t *testing.T) {
	fdtest.NoLeaks(t)
	master, worker := pair(t)
	fds := sockets(t, 1)
	for _, typ := range []Type{TypePing, TypePong} {
		send(t, master, typ, nil)
		var m Message
		if err := worker.Receive(&m); err != nil || m.Type != typ || len(m.Handoffs) > 0 {
			t.Errorf("received %+v, error %v", m, err)
		}
		send(t, master, typ, handoffs(fds...))
		wantError(t, worker, ErrMalformed)
	}
}

// TestOnTheWire: the descriptors ride on the message in one SCM_RIGHTS control
// message (man 7 unix), as many as there are records.
func TestOnTheWire(t *testing.T) {
	fdtest.NoLeaks(t)
	fd, conn := rawPair(t)
	defer unix.Close(fd)
	fds := sockets(t, 3)
	send(t, conn, TypeHandoff, handoffs(fds...))
	body, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(64*4))
	n, oobn, flags, _, err := unix.Recvmsg(fd, body, oob, 0)
	if err != nil || !bytes.Equal(body[:n], appendMessage(nil, TypeHandoff, handoffs(fds...), false)) || flags != 0 {
		t.Errorf("received %x, flags %#x, error %v", body[:n], flags, err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages, error %v", len(messages), err)
	}
	got, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(got) != 3 {
		t.Errorf("descriptors %v, error %v", got, err)
	}
	closeAll(got)
}

// TestScope: a zone that is not a number cannot be sent, since names of
// interfaces mean nothing elsewhere.
func TestScope(t *testing.T) {
	for zone, want := range map[string]uint32{"": 0, "7": 7, "4294967295": 4294967295, "4294967296": 0, "eth0": 0, "-1": 0} {
		if got := scopeOf(netip.MustParseAddr("fe80::1").WithZone(zone)); got != want {
			t.Errorf("scope of zone %q is %d, want %d", zone, got, want)
		}
	}
}

func TestTypeString(t *testing.T) {
	for typ, want := range map[Type]string{TypeHandoff: "handoff", TypeReady: "ready", TypeLeave: "leave", TypeReturn: "return", TypeHandBack: "hand back", TypeSlots: "slots", TypePass: "pass", 200: "type 200"} {
		if typ.String() != want {
			t.Errorf("%q, want %q", typ, want)
		}
	}
}

// parseAll parses a message as Receive does, but for the descriptors.
func parseAll(b []byte) (t Type, hs []Handoff, err error) {
	p, err := parse(b)
	if err == nil {
		hs, err = p.handoffs(nil, slices.Repeat([]int{-1}, p.count))
	}
	return p.t, hs, err
}

// FuzzParseMessage: parsing never panics, fails only with ErrMalformed, and what
// parses is encoded to a message that means the same.
func FuzzParseMessage(f *testing.F) {
	for _, b := range messages() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		typ, hs, err := parseAll(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%x: error %v", b, err)
			}
			return
		}
		again, hs2, err := parseAll(appendMessage(nil, typ, hs, true))
		if err != nil || again != typ || len(hs2) != len(hs) {
			t.Fatalf("%x: %s with %d records becomes %s with %d, error %v", b, typ, len(hs), again, len(hs2), err)
		}
		for i := range hs {
			if hs[i] != hs2[i] {
				t.Errorf("%x: record %d is %v, then %v", b, i, hs[i], hs2[i])
			}
		}
	})
}

// messages are good, bad and later ones, for the fuzzers to begin with.
func messages() [][]byte {
	good := appendMessage(nil, TypeHandoff, clients, false)
	detailed := appendMessage(nil, TypeHandBack, detailed(-1, -1, -1), true)
	full := appendMessage(nil, TypeReturn, numbered(0, 1, MaxBatch), false)
	return [][]byte{
		appendReport(nil, Report{1, 1 << 40, 7, 5}), edit(appendReport(nil, Report{}), 3, 2),
		nil, {1}, good, full, good[:len(good)-1], later(clients[:3]...),
		appendMessage(nil, TypeReady, nil, false), appendMessage(nil, TypePing, nil, false), appendMessage(nil, TypePong, nil, false),
		appendMessage(nil, TypePing, clients[:1], false), appendMessage(nil, TypePong, clients[:1], false), appendMessage(nil, 200, clients[:1], false),
		edit(good, 0, 2), edit(good, 3, 0xff), edit(good, 5, 1), edit(good, headerSize+1, 5),
		appendSlots(nil, 1024, true), appendMessage(nil, TypeHandBack, nil, false),
		detailed, detailed[:len(detailed)-1], edit(detailed, 7, 1), edit(detailed, headerSize+recordSize+1, 0), edit(detailed, 6, 0xff),
		append(full, good...),
	}
}

// edit returns a copy of a message with one byte changed.
func edit(b []byte, at int, to byte) []byte {
	b = bytes.Clone(b)
	b[at] = to
	return b
}

// later returns a message as a later version may send it: 32 bytes a record.
func later(hs ...Handoff) []byte {
	b := edit(appendMessage(nil, TypeHandoff, hs, false)[:headerSize], 5, 32)
	for i := range hs {
		b = append(appendRecord(b, &hs[i]), "8 more B"...)
	}
	return b
}
