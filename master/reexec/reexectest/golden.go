// Package reexectest holds what programs leave to each other to its form.
package reexectest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/handfast/handfast/master/reexec"
)

// directory has golden parts: NAME-VERSION.json.
const directory = "testdata/bundle"

// write is the variable that has Golden write a file that is not there: HANDFAST_GOLDEN=write go test ./master/...
const write = "HANDFAST_GOLDEN"

// Golden fails unless today's code reads the golden file of a part as exactly the sample, and would write it so.
// The sample is what the part's package passes to Seal or Put, with no field that is zero. Golden files of other
// versions must be refused by their version.
//
// After a change of the form increase the part's version, complete the sample, and have the new file written (see
// write). The old one may stay as long as the test is to show that it is refused.
func Golden(t *testing.T, part reexec.Part, sample any) {
	t.Helper()
	for _, field := range zero(reflect.ValueOf(sample), part.Name) {
		t.Errorf("%s is zero in the sample, so that the golden file does not show it", field)
	}
	path := filepath.Join(directory, fmt.Sprintf("%s-%d.json", part.Name, part.Version))
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) && os.Getenv(write) == "write" {
		text = indented(t, sample)
		if err = os.MkdirAll(directory, 0o755); err == nil {
			err = os.WriteFile(path, text, 0o644)
		}
	}
	if err != nil {
		t.Fatalf("%v; %s=write writes it", err, write)
	}
	got := reflect.New(reflect.TypeOf(sample))
	if err := unseal(t, text, part.Version, part, got.Interface()); err != nil {
		t.Errorf("%s is not read any more: %v\nIncrease the version of part %q, and have a new golden file written: %s=write", path, err, part.Name, write)
	} else if !reflect.DeepEqual(got.Elem().Interface(), sample) {
		t.Errorf("%s is read as\n%+v\nwant\n%+v", path, got.Elem().Interface(), sample)
	}
	others, _ := filepath.Glob(filepath.Join(directory, part.Name+"-[0-9]*.json"))
	for _, other := range others {
		var version int
		fmt.Sscanf(strings.TrimPrefix(filepath.Base(other), part.Name+"-"), "%d.json", &version)
		if version == part.Version {
			continue
		}
		text, err := os.ReadFile(other)
		if err != nil {
			t.Fatal(err)
		}
		if err := unseal(t, text, version, part, got.Interface()); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q in version %d", part.Name, version)) {
			t.Errorf("%s, of another version: %v", other, err)
		}
	}
}

// Text returns a part as Seal does, of a golden file's text.
func Text(t testing.TB, part reexec.Part) json.RawMessage {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(directory, fmt.Sprintf("%s-%d.json", part.Name, part.Version)))
	if err != nil {
		t.Fatal(err)
	}
	return sealed(t, text, part.Version, part.Name)
}

func sealed(t testing.TB, state []byte, version int, name string) json.RawMessage {
	t.Helper()
	var text bytes.Buffer
	if err := json.Compact(&text, fmt.Appendf(nil, `{"Part":%q,"State":{"Version":%d,"State":%s}}`, name, version, state)); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}

func unseal(t *testing.T, state []byte, version int, part reexec.Part, into any) error {
	t.Helper()
	return reexec.NewBundle("golden").Unseal(sealed(t, state, version, part.Name), part, into)
}

func indented(t *testing.T, state any) []byte {
	t.Helper()
	text, err := json.MarshalIndent(state, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return append(text, '\n')
}

// zero names the fields that are zero in all elements of what they are in.
func zero(v reflect.Value, name string) (fields []string) {
	switch {
	case v.Type() == reflect.TypeFor[error](): // which JSON has not
		return nil
	case v.IsZero():
		return []string{name}
	case v.Type() == reflect.TypeFor[time.Time](), v.Type().Implements(reflect.TypeFor[interface{ MarshalText() ([]byte, error) }]()):
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		return zero(v.Elem(), name)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fields = append(fields, zero(v.Field(i), name+"."+v.Type().Field(i).Name)...)
			}
		}
	case reflect.Slice, reflect.Map:
		if v.Len() == 0 {
			return []string{name}
		}
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return nil
		}
		for _, element := range elements(v) {
			some := zero(element, name)
			if fields == nil {
				fields = some
			}
			fields = common(fields, some)
			if len(fields) == 0 {
				return nil
			}
		}
	}
	return fields
}

func elements(v reflect.Value) (all []reflect.Value) {
	for _, element := range v.Seq2() {
		all = append(all, element)
	}
	return all
}

// common returns the fields that are in both.
func common(a, b []string) (both []string) {
	for _, field := range a {
		for _, other := range b {
			if field == other || strings.HasPrefix(field, other+".") {
				both = append(both, field)
				break
			}
		}
	}
	return both
}
