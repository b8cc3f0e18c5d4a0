-- Prosody as a worker: prosody -F --config prosody.cfg.lua
run_as_root = true
daemonize = false
data_path = "."
certificates = "."
plugin_paths = {}
modules_enabled = { "saslauth", "disco", "ping" }
modules_disabled = { "s2s" }
interfaces = { "0.0.0.0" }
c2s_ports = { 8080 }
c2s_direct_tls_ports = {}
authentication = "anonymous"
c2s_require_encryption = false
log = { warn = "*console" }
VirtualHost "localhost"
