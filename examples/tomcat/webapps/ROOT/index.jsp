<%@ page session="true" contentType="text/plain" %><%
	Integer visits = (Integer) session.getAttribute("visits");
	session.setAttribute("visits", visits = visits == null ? 1 : visits + 1);
%>slot=<%= System.getenv("HANDFAST_SLOT") %> generation=<%= System.getenv("HANDFAST_GENERATION") %> visits=<%= visits %>
