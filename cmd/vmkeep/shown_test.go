package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
)

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 20: "1.0 MiB", 62 << 40: "62.0 TiB", -2048: "-2.0 KiB", 1<<63 - 1: "8.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for text, want := range map[string]int64{"0": 0, "512": 512, "512k": 512 << 10, "20GiB": 20 << 30, "1.5T": 3 << 39, "7 MB": 7 << 20, "3b": 3} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "k", "-1", "1x", "1kk", "NaN", "Inf", "9999999T", "1e400"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", text, got)
		}
	}
}

func TestDurations(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0s", 400 * time.Millisecond: "0.4s", 5 * time.Second: "5s", 12 * time.Second: "12s", 200 * time.Second: "3m20s", 125 * time.Minute: "2h05m", -1: "-"} {
		if got := elapsed(d); got != want {
			t.Errorf("elapsed(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestTimes(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"":                          {},
		"36h":                       now.Add(-36 * time.Hour),
		"7d":                        now.Add(-7 * 24 * time.Hour),
		"2026-11-01T10:00:00+02:00": time.Date(2026, 11, 1, 8, 0, 0, 0, time.UTC),
		"2026-11-01":                time.Date(2026, 11, 1, 0, 0, 0, 0, time.Local),
		"2026-11-01 14:30":          time.Date(2026, 11, 1, 14, 30, 0, 0, time.Local),
	} {
		if got, err := parseTime(text, now); err != nil || !got.Equal(want) {
			t.Errorf("parseTime(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"yesterday", "-3h", "2026-13-01", "d"} {
		if got, err := parseTime(text, now); err == nil {
			t.Errorf("parseTime(%q) = %v, want an error", text, got)
		}
	}
}

func TestSplitCommand(t *testing.T) {
	for text, want := range map[string][]string{
		`pass show backup`:       {"pass", "show", "backup"},
		`  cat  "my file" `:      {"cat", "my file"},
		`a 'b "c" \d' "e 'f'"`:   {"a", `b "c" \d`, "e 'f'"},
		`echo \"x\" a\ b`:        {"echo", `"x"`, "a b"},
		`x ""`:                   {"x", ""},
		"tab\tand\nnewline":      {"tab", "and", "newline"},
		`glued"to"'get'her`:      {"gluedtogether"},
		`cmd "with \" escaped"`:  {"cmd", `with " escaped`},
		`cmd 'no \' "escape"`:    {"cmd", `no \`, "escape"},
		`/usr/bin/op read "p w"`: {"/usr/bin/op", "read", "p w"},
	} {
		if got, err := splitCommand(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("splitCommand(%q) = %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"", "  ", `"open`, `'open`, `end\`} {
		if got, err := splitCommand(text); err == nil {
			t.Errorf("splitCommand(%q) = %q, want an error", text, got)
		}
	}
}

func TestVSphereURLs(t *testing.T) {
	for text, want := range map[string]string{
		"vc.example":                 "https://vc.example/sdk",
		"ann:pw@vc.example":          "https://ann:pw@vc.example/sdk",
		"https://vc.example:8443":    "https://vc.example:8443/sdk",
		"http://127.0.0.1/other/sdk": "http://127.0.0.1/other/sdk",
		"[2001:db8::1]":              "https://[2001:db8::1]/sdk",
	} {
		if got, err := vsphereURL(text); err != nil || got.String() != want {
			t.Errorf("vsphereURL(%q) = %v, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"ftp://vc.example", "https://", "https://ann:geheim@vc example", "://x"} {
		got, err := vsphereURL(text)
		if err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("vsphereURL(%q) = %v, %v, want an error without the password", text, got, err)
		}
	}
}

func TestWithoutPassword(t *testing.T) {
	for text, want := range map[string]string{
		"/srv/repo":                         "/srv/repo",
		"rest:https://ann:geheim@host/repo": "rest:https://ann:***@host/repo",
		"ann:ge@heim@host":                  "ann:***@host",
		"https://ann@host/sdk":              "https://ann@host/sdk",
		"s3:https://s3.example/bucket":      "s3:https://s3.example/bucket",
	} {
		if got := withoutPassword(text); got != want {
			t.Errorf("withoutPassword(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestGrid(t *testing.T) {
	g := grid{head: []string{"NAME", ">SIZE", "NOTE"}}
	g.add("ä", "1.0 MiB", "")
	g.add("longer", "0 B", "x")
	var out bytes.Buffer
	g.write(&out)
	want := "NAME       SIZE  NOTE\nä       1.0 MiB\nlonger      0 B  x\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// TestSchema pins the JSON of the types that scripts read: names may be added here, never changed.
func TestSchema(t *testing.T) {
	point := &plugin.Point{ID: "ab", VCenter: "vc", InstanceUUID: "u", Time: time.Date(2026, 11, 23, 1, 2, 3, 0, time.FixedZone("", 3600)),
		Disks: []plugin.PointDisk{{Name: "scsi0-0", ChangeID: "c", UUID: "d"}}, Stats: plugin.Stats{Size: 1 << 40, Duration: 1500 * time.Millisecond}}
	for want, v := range map[string]any{
		`{"message_type":"t","id":"ab","repository":"","machine":"","vcenter":"vc","instance_uuid":"u","path":"","time":"2026-11-23T00:02:03Z","consistency":"","tags":[],` +
			`"disks":[{"name":"scsi0-0","label":"","uuid":"d","path":"","capacity":0,"incremental":false,"reason":"","change_id":"c","transport":"","read":0,"changed":0,"skipped":""}],` +
			`"stats":{"size":1099511627776,"read":0,"reused":0,"new":0,"stored":0,"duration_seconds":1.5},"damage":"","chunking":""}`: *point,
		`{"message_type":"t","id":"","name":"","path":"","instance_uuid":"","bios_uuid":"","host":"","cluster":"","folder":"","resource_pool":"","datastores":["a"],"power_state":"","guest_os":"",` +
			`"hw_version":"","template":false,"tools_running":false,"cbt":true,"snapshots":0,"tags":[],"disks":[]}`: plugin.Machine{Datastores: []string{"a"}, CBT: true},
		`{"message_type":"t","seq":3,"operation":"","machine":"m","disk":"","kind":"progress","phase":"","progress":{"done":1,"total":2,"read":0,"stored":0,"eta_seconds":0.25}}`: plugin.Event{
			Seq: 3, Machine: "m", Kind: plugin.EventProgress, Progress: &plugin.Progress{Done: 1, Total: 2, ETA: 250 * time.Millisecond}},
		`{"message_type":"t","machine":"m","point":"","compared":0,"different":[],"err":{"code":"internal","summary":"s","detail":"","remedy":"","object":""}}`: plugin.VerifyResult{
			Machine: "m", Err: &plugin.Error{Code: plugin.CodeInternal, Summary: "s", Err: bytes.ErrTooLarge}},
		`{"message_type":"t","path":"/caf` + "\uFFFD" + `","type":"","size":0,"mode":0,"uid":0,"gid":0,"link":"","links":0,"xattrs":[],"streams":[],"note":""}`: plugin.File{Path: "/caf\xe9"},
	} {
		var out bytes.Buffer
		writeJSON(&out, "t", v)
		if got := strings.ReplaceAll(out.String(), `\ufffd`, "\uFFFD"); got != want+"\n" {
			t.Errorf("got\n%swant\n%s", got, want)
		}
		if !json.Valid(out.Bytes()) {
			t.Errorf("not JSON: %s", out.String())
		}
	}
}

// TestEveryTypeIsJSON writes every answer of the contract, empty and with one of each element.
func TestEveryTypeIsJSON(t *testing.T) {
	service := reflect.TypeFor[plugin.Service]()
	for i := range service.NumMethod() {
		m := service.Method(i)
		for j := range m.Type.NumOut() {
			typ := m.Type.Out(j)
			if typ.Kind() == reflect.Slice {
				typ = typ.Elem()
			}
			if typ.Kind() != reflect.Struct {
				continue
			}
			v := reflect.New(typ).Elem()
			oneOfEach(v)
			for _, v := range []any{v.Interface(), reflect.Zero(typ).Interface()} {
				var out bytes.Buffer
				writeJSON(&out, m.Name, v)
				if !json.Valid(out.Bytes()) || strings.Count(out.String(), "\n") != 1 {
					t.Errorf("%s: not a line of JSON: %s", m.Name, out.String())
				}
			}
		}
	}
}

func oneOfEach(v reflect.Value) {
	switch v.Kind() {
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		oneOfEach(v.Index(0))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		oneOfEach(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() && v.Type().Field(i).Type.Kind() != reflect.Interface {
				oneOfEach(v.Field(i))
			}
		}
	}
}

// TestVerdicts: the exit code of a backup.
func TestVerdicts(t *testing.T) {
	good := plugin.MachineResult{Point: &plugin.Point{}}
	degraded := plugin.MachineResult{Point: &plugin.Point{}, Warnings: []plugin.Diagnostic{{Code: plugin.CodeQuiesce}}}
	failed := func(c plugin.Code) plugin.MachineResult { return plugin.MachineResult{Err: &plugin.Error{Code: c}} }
	for _, c := range []struct {
		machines []plugin.MachineResult
		want     int
	}{
		{nil, exitOK},
		{[]plugin.MachineResult{good, good}, exitOK},
		{[]plugin.MachineResult{good, degraded}, exitPartial},
		{[]plugin.MachineResult{good, failed(plugin.CodeSnapshot)}, exitPartial},
		{[]plugin.MachineResult{degraded, failed(plugin.CodeSnapshot)}, exitPartial},
		{[]plugin.MachineResult{failed(plugin.CodeSnapshot)}, exitFailure},
		{[]plugin.MachineResult{failed(plugin.CodeLocked), failed(plugin.CodeLocked)}, exitLocked},
		{[]plugin.MachineResult{failed(plugin.CodeLocked), failed(plugin.CodeSpace)}, exitFailure},
		{[]plugin.MachineResult{failed(plugin.CodeCancelled)}, exitInterrupted},
		{[]plugin.MachineResult{failed(plugin.CodeDegraded)}, exitPartial},
	} {
		got := exitOK
		if p, ok := verdict(plugin.BackupReport{Machines: c.machines}).(partial); ok {
			got = p.code
		}
		if got != c.want {
			t.Errorf("%+v: exit code %d, want %d", c.machines, got, c.want)
		}
	}
}

// TestPlainProgress: figures come at most once per interval and thing; all else comes.
func TestPlainProgress(t *testing.T) {
	var out bytes.Buffer
	a := app{stderr: &out, env: environment{getenv: func(string) string { return "" }}}
	w := a.watch()
	at := time.Unix(0, 0)
	for i := range 100 {
		for _, disk := range []string{"scsi0-0", "scsi0-1"} {
			w.emit(plugin.Event{Time: at.Add(time.Duration(i) * time.Second), Machine: "web", Disk: disk, Kind: plugin.EventProgress, Phase: "read",
				Progress: &plugin.Progress{Done: int64(i) << 20, Total: 100 << 20, ETA: time.Minute}})
		}
		for _, phase := range []plugin.Phase{plugin.PhaseFiles, plugin.PhaseDisks} { // two things about one machine
			w.emit(plugin.Event{Time: at.Add(time.Duration(i) * time.Second), Machine: "web", Kind: plugin.EventProgress, Phase: phase,
				Progress: &plugin.Progress{Done: int64(i) << 20, Total: 100 << 20, ETA: time.Hour}})
		}
	}
	w.emit(plugin.Event{Machine: "web", Kind: plugin.EventDiagnostic, Diagnostic: &plugin.Diagnostic{Severity: plugin.SeverityWarning, Summary: "s", Detail: "d", Remedy: "r"}})
	w.finish()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 4*4+2 || lines[4] != "web scsi0-0: read: at 30.0 MiB of 100.0 MiB, 1m00s left" || lines[7] != "web: all disks: at 30.0 MiB of 100.0 MiB, 1h00m left" ||
		lines[16] != "web: warning: s: d" || lines[17] != "  -> r" {
		t.Errorf("got %d lines:\n%s", len(lines), out.String())
	}
}

// TestNamesOfGuestsAreHarmless: a name that a guest chose does not steer the terminal.
func TestNamesOfGuestsAreHarmless(t *testing.T) {
	line := fileLine(plugin.File{Path: "a\x1b[2Jb\nc\x9bd\xff", Type: "symlink", Link: "x\ry", Mode: 0o4755})
	if strings.ContainsAny(line, "\x1b\n\r") || strings.Contains(line, "\x9b") || strings.Contains(line, "\xff") || !strings.HasPrefix(line, "lrwsr-xr-x ") {
		t.Errorf("got %q", line)
	}
}

// TestJSONHelpIsComplete: every message type that the source writes is in "vmkeep help json".
func TestJSONHelpIsComplete(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]bool{"phase": true, "progress": true, "diagnostic": true, "result": true} // the kinds of event
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`writeJSON\(a\.std\w+, "(\w+)"`).FindAllStringSubmatch(string(source), -1) {
			types[m[1]] = true
		}
	}
	if len(types) < 15 {
		t.Fatalf("found only %v", types)
	}
	for name := range types {
		if !regexp.MustCompile(`(?m)^  ` + name + ` `).MatchString(jsonHelp) {
			t.Errorf("%s is not documented", name)
		}
	}
}
