package forwarded

import (
	"net/url"
	"strings"
)

// Where servers differ in how they read a request, this is how most do: so that what handfast places by is what the server
// takes for the client's. What is read is borrowed from the request, unless it is percent-encoded.

// cookie returns the value of a cookie in a line of the header Cookie (RFC 6265, section 4.2), the first one of the name, without
// the quotes that may be around it.
func cookie(name, line string) (value string, found bool) {
	for line != "" {
		var pair string
		pair, line, _ = strings.Cut(line, ";")
		if key, value, whole := strings.Cut(pair, "="); whole && trim(key) == name {
			value = trim(value)
			if len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' {
				value = value[1 : len(value)-1]
			}
			return value, true
		}
	}
	return "", false
}

// split takes a target apart (RFC 9112, section 3.2), which may be an absolute URI, or none of these.
func split(target string) (path, query string) {
	if !strings.HasPrefix(target, "/") {
		_, authority, found := strings.Cut(target, "://")
		if !found {
			return "", ""
		}
		i := strings.IndexAny(authority, "/?")
		if i < 0 {
			return "", ""
		}
		target = authority[i:]
	}
	target, _, _ = strings.Cut(target, "#")
	path, query, _ = strings.Cut(target, "?")
	return path, query
}

// parameter returns the value of the first parameter of a name in a target's query, as forms write it.
func parameter(name, target string) string {
	_, query := split(target)
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		if key, value, _ := strings.Cut(pair, "="); decoded(key, url.QueryUnescape) == name {
			return decoded(value, url.QueryUnescape)
		}
	}
	return ""
}

// isQueryName tells whether a parameter can have a name. Lists have commas between them.
func isQueryName(name string) bool {
	return name != "" && !strings.Contains(name, ",") && !hasControls([]byte(name))
}

// Parts of a template: a segment that may be any, and how the one begins and ends that is looked for.
const (
	anySegment  = "*"
	idBegins    = "{"
	idEnds      = "}"
	maxSegments = 32
)

// segment returns the segment of a target's path that a template such as "/echo/*/{session}" has in braces, if those
// before it fit. What follows it does not matter.
func segment(template, target string) string {
	path, _ := split(target)
	for {
		var want, have string
		want, template, _ = strings.Cut(strings.TrimPrefix(template, "/"), "/")
		if !strings.HasPrefix(path, "/") {
			return ""
		}
		have, path = cutSegment(path[1:])
		have = decoded(have, url.PathUnescape)
		switch {
		case strings.HasPrefix(want, idBegins):
			return have
		case have == "" || want != anySegment && want != have:
			return ""
		}
	}
}

func cutSegment(path string) (segment, rest string) {
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], path[i:]
	}
	return path, ""
}

// isTemplate tells whether a template names one segment, the last of it.
func isTemplate(template string) bool {
	if !strings.HasPrefix(template, "/") || strings.ContainsAny(template, ",?#%") || hasControls([]byte(template)) {
		return false
	}
	segments := strings.Split(template[1:], "/")
	last := len(segments) - 1
	for _, s := range segments[:last] {
		if s == "" || strings.ContainsAny(s, idBegins+idEnds) || s != anySegment && strings.Contains(s, anySegment) {
			return false
		}
	}
	inside, begins := strings.CutPrefix(segments[last], idBegins)
	inside, ends := strings.CutSuffix(inside, idEnds)
	return begins && ends && inside != "" && !strings.ContainsAny(inside, idBegins+idEnds) && len(segments) <= maxSegments
}

// decoded is text without percent-encoding; as it is if that is wrong.
func decoded(text string, unescape func(string) (string, error)) string {
	if !strings.ContainsAny(text, "%+") {
		return text
	}
	if plain, err := unescape(text); err == nil {
		return plain
	}
	return text
}
