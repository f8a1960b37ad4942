"""Updates of the surfaces whose models score whole answers: queries and reactivation."""
