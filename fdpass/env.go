package fdpass

// Names of the environment variables by which a master tells a worker where it is and what it may expect. The package
// comment says what each of them means.
const (
	EnvFD             = "HANDFAST_FD"
	EnvSlot           = "HANDFAST_SLOT"
	EnvSlots          = "HANDFAST_SLOTS"
	EnvGeneration     = "HANDFAST_GENERATION"
	EnvWorkerID       = "WORKER_ID" // as sticky-listen and recluster name the slot
	EnvAddress        = "HANDFAST_ADDRESS"
	EnvSlotAddress    = "HANDFAST_SLOT_ADDRESS"
	EnvReport         = "HANDFAST_REPORT"
	EnvPing           = "HANDFAST_PING"
	EnvHandBack       = "HANDFAST_HAND_BACK"
	EnvSeed           = "HANDFAST_SEED"
	EnvRoute          = "HANDFAST_ROUTE"
	EnvDrainTimeout   = "HANDFAST_DRAIN_TIMEOUT"
	EnvDrainSpread    = "HANDFAST_DRAIN_SPREAD"
	EnvMaxConnections = "HANDFAST_MAX_CONNECTIONS_PER_SLOT"

	// Package forwarded writes and reads these.
	EnvBehindProxy    = "HANDFAST_BEHIND_PROXY"
	EnvProxyHeader    = "HANDFAST_PROXY_HEADER"
	EnvTrustedProxies = "HANDFAST_TRUSTED_PROXIES"
	EnvTrustedHops    = "HANDFAST_TRUSTED_HOPS"
	EnvKey            = "HANDFAST_KEY"
	EnvSession        = "HANDFAST_SESSION"
	EnvNewSessions    = "HANDFAST_NEW_SESSIONS"

	EnvIPv4Prefix = "HANDFAST_IPV4_PREFIX"
	EnvIPv6Prefix = "HANDFAST_IPV6_PREFIX"
)
